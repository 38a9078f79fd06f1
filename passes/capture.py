"""The graphs of an unpruned model: its own blocks in its own order, every site marked."""

import operator
from typing import Any

from torch import fx
from torch.fx import Node

from tokcarve.passes.blocks import Embedding
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.graph import Parts, Thread, TokenGraphs, drop_prefix
from tokcarve.passes.text_blocks import causal_mask, decode_mask

__all__ = ["capture"]


def capture(parts: Parts, geometry: Geometry) -> TokenGraphs:
    """The graphs of the model that `parts` were cut from."""
    return TokenGraphs(
        geometry=geometry,
        parts=parts,
        vision=_vision_graph(parts, geometry),
        language=_language_graph(parts, geometry),
        decode=_decode_graph(parts, geometry),
        embedding=Embedding(parts.embed_tokens, geometry.image_token_id),
    )


def _vision_graph(parts: Parts, geometry: Geometry) -> fx.GraphModule:
    graph = fx.Graph()
    pixels = graph.placeholder("pixel_values")
    pixels.meta["site"] = "pixels"
    hidden = graph.call_module("embeddings", (pixels,))
    modules: dict[str, Any] = {"embeddings": parts.patches, "connector": parts.connector}
    for i, block in enumerate(parts.vision_blocks):
        modules[f"layers.{i}"] = block
        hidden = graph.call_module(f"layers.{i}", (hidden,))
        hidden.meta["site"] = f"vision.layers.{i}"
    if geometry.vision.prefix:
        hidden = graph.call_function(drop_prefix, (hidden, geometry.vision.prefix))
    features = graph.call_module("connector", (hidden,))
    features.meta["site"] = "connector"
    graph.output((features, {}))
    module = fx.GraphModule(modules, graph, "Vision")
    module.meta["thread"] = Thread(count=geometry.total)
    return module


def _language_graph(parts: Parts, geometry: Geometry) -> fx.GraphModule:
    graph = fx.Graph()
    hidden, positions, _ = (graph.placeholder(n) for n in ("inputs_embeds", "position_ids", "prompt_lengths"))
    modules: dict[str, Any] = {"rotary": parts.rotary, "norm": parts.norm, "head": parts.head}
    rotary = graph.call_module("rotary", (hidden, positions))
    cos, sin = _items(graph, rotary, 2)
    mask = graph.call_function(causal_mask, (hidden, geometry.text.sliding_window))
    keys, values = [], []
    for i, block in enumerate(parts.text_blocks):
        modules[f"layers.{i}"] = block
        out = graph.call_module(f"layers.{i}", (hidden, mask, cos, sin))
        hidden, key, value = _items(graph, out, 3)
        hidden.meta["site"] = f"language.layers.{i}"
        keys.append(key)
        values.append(value)
    logits = graph.call_module("head", (graph.call_module("norm", (hidden,)),))
    graph.output((logits, keys, values))
    module = fx.GraphModule(modules, graph, "Language")
    module.meta["thread"] = Thread(count=geometry.total, positions="position_ids")
    return module


def _decode_graph(parts: Parts, geometry: Geometry) -> fx.GraphModule:
    graph = fx.Graph()
    names = ("input_ids", "position_ids", "prompt_lengths", "step", "past_keys", "past_values", "capacity")
    ids, positions, lengths, step, past_keys, past_values, capacity = (graph.placeholder(n) for n in names)
    modules: dict[str, Any] = {
        "embed_tokens": parts.embed_tokens,
        "rotary": parts.rotary,
        "norm": parts.norm,
        "head": parts.head,
    }
    hidden = graph.call_module("embed_tokens", (ids,))
    cos, sin = _items(graph, graph.call_module("rotary", (hidden, positions)), 2)
    first = graph.call_function(operator.getitem, (past_keys, 0))
    mask = graph.call_function(decode_mask, (first, lengths, step, capacity, 0, geometry.text.sliding_window))
    new_keys, new_values = [], []
    for i, block in enumerate(parts.text_blocks):
        modules[f"layers.{i}"] = block
        past = [graph.call_function(operator.getitem, (source, i)) for source in (past_keys, past_values)]
        out = graph.call_module(f"layers.{i}", (hidden, mask, cos, sin, *past))
        hidden, key, value = _items(graph, out, 3)
        new_keys.append(key)
        new_values.append(value)
    logits = graph.call_module("head", (graph.call_module("norm", (hidden,)),))
    graph.output((logits, new_keys, new_values))
    return fx.GraphModule(modules, graph, "Decode")


def _items(graph: fx.Graph, node: Node, count: int) -> list[Node]:
    return [graph.call_function(operator.getitem, (node, i)) for i in range(count)]
