"""The token graph: `torch.fx` at block granularity, small enough to print, rewritten without weights.

vision      pixel_values -> embeddings -> layers.0 ... layers.n -> connector -> image_features
language    inputs_embeds, position_ids -> rotary -> layers.0 ... layers.m -> norm -> head -> logits, KV per layer
decode      the language graph with KV in and out, one row, never pruned
"""

import copy
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx, nn
from torch.fx import Node

from tokcarve.passes.blocks import Embedding, PatchEmbedding, Rotary, TextBlock, VisionBlock, causal_mask, decode_mask
from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry

__all__ = ["Parts", "Thread", "TokenGraphs", "capture", "clone", "drop_prefix", "input_node", "node_at", "thread"]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A model cut into its own blocks: what a family adapter hands over, and all that the graphs are made of."""

    patches: PatchEmbedding
    vision_blocks: tuple[VisionBlock, ...]
    vision_next: VisionBlock | None  # the layer behind the last one used, which never runs
    connector: nn.Module
    embed_tokens: nn.Module
    text_blocks: tuple[TextBlock, ...]
    rotary: Rotary
    norm: nn.Module
    head: nn.Module


@dataclass(frozen=True, kw_only=True)
class Thread:
    """What runs beside the tokens through one graph, as node names.

    index: original token ids [batch, n] of the tokens at this point; carry: a method's own tensors [batch, n, ...];
    alive: bool [batch, n], present while tokens are masked instead of removed; count: n; biased: whether attention
    counts the tokens by their size.
    """

    count: int
    index: str | None = None
    alive: str | None = None
    biased: bool = False
    carry: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class TokenGraphs:
    """One model as graphs that share its weights.

    vision(pixel_values) -> (image_features [batch, keep, hidden], {site: kept ids int64 [batch, keep]}); a method that
        reads the text makes it vision(pixel_values, input_ids, prompt_lengths), see `reads_text`
    language(inputs_embeds, position_ids, prompt_lengths) -> (logits [batch, rows, vocab], [keys], [values])
    decode(input_ids, position_ids, prompt_lengths, step, past_keys, past_values, capacity) -> logits and new rows
    embedding(input_ids, image_features, kept) -> (inputs_embeds, position_ids)
    """

    geometry: Geometry
    parts: Parts
    vision: fx.GraphModule
    language: fx.GraphModule
    decode: fx.GraphModule
    embedding: Embedding

    @property
    def reads_text(self) -> bool:
        """Whether the vision graph takes the prompt: right-padded ids int64 [batch, rows], real rows int64 [batch]."""
        return len(_inputs(self.vision)) > 1

    def see(
        self, pixel_values: Tensor, input_ids: Tensor | None = None, prompt_lengths: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The vision graph on what it takes of these: any number of image tokens may stand in the prompt."""
        if not self.reads_text:
            features, kept = self.vision(pixel_values)
            return features, kept
        if input_ids is None or prompt_lengths is None:
            raise MethodError("this method reads the question, so pixels alone are not enough; give the prompt too")
        features, kept = self.vision(pixel_values, input_ids, prompt_lengths)
        return features, kept


def drop_prefix(hidden: Tensor, prefix: int) -> Tensor:
    """Rows [batch, prefix + n, hidden] without the first `prefix`: the patches alone."""
    return hidden[:, prefix:]


def capture(parts: Parts, geometry: Geometry) -> TokenGraphs:
    """The graphs of an unpruned model: its own blocks in its own order."""
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
    return fx.GraphModule(modules, graph, "Language")


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


def clone(module: fx.GraphModule) -> fx.GraphModule:
    """A graph that may be rewritten: nodes copied, weights shared, `module` left as it is."""
    copied = fx.GraphModule(module, copy.deepcopy(module.graph), type(module).__name__)
    copied.meta.update(module.meta)
    return copied


def thread(module: fx.GraphModule) -> Thread:
    """What runs beside the tokens of a vision graph, as of its last stage."""
    found = module.meta["thread"]
    assert isinstance(found, Thread)
    return found


def input_node(module: fx.GraphModule, name: str) -> Node:
    """The input of that name; made, behind the others, where the graph does not take it yet."""
    inputs = _inputs(module)
    for node in inputs:
        if node.target == name:
            return node
    with module.graph.inserting_after(inputs[-1]):
        made: Node = module.graph.placeholder(name)
    return made


def _inputs(module: fx.GraphModule) -> list[Node]:
    return [node for node in module.graph.nodes if node.op == "placeholder"]


def node_at(module: fx.GraphModule, name: str) -> Node:
    """The node called `name`, or what carries the meta entry site == `name`."""
    nodes: list[Node] = list(module.graph.nodes)
    for node in nodes:
        if node.name == name or node.meta.get("site") == name:
            return node
    raise KeyError(name)
