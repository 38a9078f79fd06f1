"""The token graphs behind the flat signatures of the `ort` face: tensors in, tensors out, nothing dynamic."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn

from tokcarve.passes.graph import Read, Seen, Step, TokenGraphs, clone, thread
from tokcarve.passes.invariants import propagate_language, propagate_vision

__all__ = ["FaceGraph", "Shapes", "face_graphs", "final_kept", "kept_name", "last_row_only", "shapes"]


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """The constants of one exported model, all in rows.

    batch; tokens: visual tokens that leave the connector; total: those of the unpruned model; prompt: rows of the
    prompt at language layer 0 (text and visual tokens); rows: prompt rows that each language layer stores; max_new:
    decode steps.
    """

    batch: int
    tokens: int
    total: int
    prompt: int
    rows: tuple[int, ...]
    max_new: int

    @property
    def capacities(self) -> tuple[int, ...]:
        """KV slots of each language layer."""
        return tuple(rows + self.max_new for rows in self.rows)


@dataclass(frozen=True, kw_only=True)
class FaceGraph:
    """One graph of a face before lowering: a module, example inputs, and the names of both ends; `opens` names the
    dimensions that are no constants: {input or output: {dimension: name}}."""

    module: nn.Module
    inputs: tuple[Tensor, ...]
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    opens: Mapping[str, Mapping[int, str]] = field(default_factory=dict)

    @property
    def open_names(self) -> tuple[str, ...]:
        """Every name of an open dimension, once; empty for a static graph."""
        return tuple(dict.fromkeys(name for places in self.opens.values() for name in places.values()))


def final_kept(kept: Mapping[str, Tensor], batch: int, total: int) -> Tensor:
    """Original patch ids int64 [batch, keep] of the tokens after the last stage; all of them if there was none."""
    if kept:
        return list(kept.values())[-1]
    return torch.arange(total).unsqueeze(0).expand(batch, -1)


def _dtype(graphs: TokenGraphs) -> torch.dtype:
    """In which a model computes: that of the rows between its graphs, and of its caches."""
    weight = graphs.parts.embed_tokens.weight
    assert isinstance(weight, Tensor)
    return weight.dtype


class _Vision(nn.Module):
    def __init__(self, graphs: TokenGraphs) -> None:
        super().__init__()
        self.vision = graphs.vision
        self.total = graphs.geometry.total
        self.original = graphs.embedding.total is not None

    def forward(self, pixel_values: Tensor, *prompt: Tensor) -> tuple[Tensor, ...]:
        seen = Seen(*self.vision(pixel_values, *prompt))
        batch, count = seen.features.shape[:2]
        kept = final_kept(seen.kept, batch, self.total)
        places = kept if self.original else torch.arange(count).unsqueeze(0).expand(batch, -1)
        # clone: an index that is also a constant or an input of the graph cannot be its output
        return seen.features, kept.clone(), places.clone(), *seen.handed.values()


class _LastRow(nn.Module):
    """Rows [batch, n, hidden] -> the row of each prompt's last real token [batch, 1, hidden]."""

    def __init__(self, prompt: int) -> None:
        super().__init__()
        self.prompt = prompt

    def forward(self, rows: Tensor, prompt_lengths: Tensor) -> Tensor:
        last = prompt_lengths - (self.prompt - rows.shape[1]) - 1
        return torch.gather(rows, 1, last[:, None, None].expand(-1, 1, rows.shape[2]))


def last_row_only(language: fx.GraphModule, last: nn.Module) -> fx.GraphModule:
    """A copy of the language graph whose norm and head see one row per prompt, which `last` picks by (rows, prompt
    lengths); the input is untouched."""
    module = clone(language)
    module.add_submodule("last_row", last)
    norm = next(node for node in module.graph.nodes if node.op == "call_module" and node.target == "norm")
    lengths = next(n for n in module.graph.nodes if n.op == "placeholder" and n.target == "prompt_lengths")
    with module.graph.inserting_before(norm):
        row = module.graph.call_module("last_row", (norm.args[0], lengths))
    norm.args = (row,)
    module.graph.lint()
    module.recompile()
    return module


class _Prefill(nn.Module):
    def __init__(self, graphs: TokenGraphs, prompt: int) -> None:
        super().__init__()
        self.language = last_row_only(graphs.language, _LastRow(prompt))

    def forward(
        self, inputs_embeds: Tensor, position_ids: Tensor, prompt_lengths: Tensor, *more: Tensor
    ) -> tuple[Tensor, ...]:
        read = Read(*self.language(inputs_embeds, position_ids, prompt_lengths, *more))
        cache = (tensor for pair in zip(read.keys, read.values, strict=True) for tensor in pair)
        return read.logits.float(), *cache, *read.kept.values(), *read.given.values()


class _Decode(nn.Module):
    def __init__(self, graphs: TokenGraphs, max_new: int) -> None:
        super().__init__()
        self.decode = graphs.decode
        self.max_new = max_new
        self.caches = 2 * graphs.geometry.text.layers

    def forward(
        self, ids: Tensor, positions: Tensor, lengths: Tensor, step: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        past, more = rest[: self.caches], rest[self.caches :]
        made = Step(*self.decode(ids, positions, lengths, step, list(past[::2]), list(past[1::2]), self.max_new, *more))
        new = (tensor for pair in zip(made.keys, made.values, strict=True) for tensor in pair)
        return made.logits.float(), *new, *made.given.values()


def shapes(graphs: TokenGraphs, *, batch: int, max_text: int, max_new: int, tokens: int | None = None) -> Shapes:
    """The constants of `graphs` when prompts have at most `max_text` rows beside the visual tokens.

    `tokens` is for a language graph alone, without stages, that is to read another number of them.
    """
    seen = thread(graphs.vision).count
    tokens = seen if tokens is None else tokens
    text = max_text + tokens - seen
    return Shapes(
        batch=batch,
        tokens=tokens,
        total=graphs.geometry.total,
        prompt=max_text + tokens,
        rows=tuple(key.shape[2] for key in propagate_language(graphs, batch=batch, text=text).keys),
        max_new=max_new,
    )


def face_graphs(graphs: TokenGraphs, sizes: Shapes) -> dict[str, FaceGraph]:
    """The four graphs of the `ort` face, in the order in which a prompt passes through them.

    Pixels come in and logits go out as float32 whatever the model computes in, and so does what a method hands from
    graph to graph or tells; image features, embedded rows, keys and values have the dtype of the model.
    """
    return {
        "vision": _vision(graphs, sizes),
        "embedding": _embedding(graphs, sizes),
        "prefill": _prefill(graphs, sizes),
        "decode": _decode(graphs, sizes),
    }


def _vision(graphs: TokenGraphs, sizes: Shapes) -> FaceGraph:
    side = graphs.geometry.vision.image_size
    inputs: tuple[Tensor, ...] = (torch.zeros(sizes.batch, 3, side, side),)
    names: tuple[str, ...] = ("pixel_values",)
    if graphs.reads_text:
        inputs += (_prompt(graphs, sizes), torch.full((sizes.batch,), sizes.prompt))
        names += ("input_ids", "prompt_lengths")
    outputs = ("image_features", "kept_indices", "visual_position_ids", *graphs.handed)
    return FaceGraph(module=_Vision(graphs), inputs=inputs, input_names=names, output_names=outputs)


def _prompt(graphs: TokenGraphs, sizes: Shapes) -> Tensor:
    ids = torch.full((sizes.batch, sizes.prompt), graphs.geometry.pad_token_id, dtype=torch.int64)
    ids[:, : sizes.tokens] = graphs.geometry.image_token_id
    return ids


def _embedding(graphs: TokenGraphs, sizes: Shapes) -> FaceGraph:
    ids = _prompt(graphs, sizes)
    inputs: tuple[Tensor, ...] = (
        ids,
        torch.zeros(sizes.batch, sizes.tokens, graphs.geometry.text.hidden, dtype=_dtype(graphs)),
    )
    names: tuple[str, ...] = ("input_ids", "image_features")
    if graphs.embedding.total is not None:
        inputs += (torch.arange(sizes.tokens).expand(sizes.batch, -1).contiguous(),)
        names += ("kept_indices",)
    return FaceGraph(
        module=graphs.embedding, inputs=inputs, input_names=names, output_names=("inputs_embeds", "position_ids")
    )


def _prefill(graphs: TokenGraphs, sizes: Shapes) -> FaceGraph:
    hidden = graphs.geometry.text.hidden
    handed = propagate_vision(graphs, batch=sizes.batch).handed if graphs.handed else {}
    more = {name: torch.zeros(tuple(value.shape), dtype=value.dtype) for name, value in handed.items()}
    more["visual_start"] = torch.ones(sizes.batch, dtype=torch.int64)
    return FaceGraph(
        module=_Prefill(graphs, sizes.prompt),
        inputs=(
            torch.zeros(sizes.batch, sizes.prompt, hidden, dtype=_dtype(graphs)),
            torch.arange(sizes.prompt).expand(sizes.batch, -1).contiguous(),
            torch.full((sizes.batch,), sizes.prompt),
            *(more.get(name, torch.zeros(sizes.batch, sizes.tokens)) for name in graphs.language_inputs),
        ),
        input_names=("inputs_embeds", "position_ids", "prompt_lengths", *graphs.language_inputs),
        output_names=("logits", *_kv_names("present", sizes), *map(kept_name, graphs.language_sites), *graphs.gives),
    )


def _decode(graphs: TokenGraphs, sizes: Shapes) -> FaceGraph:
    text = graphs.geometry.text
    past = [
        torch.zeros(sizes.batch, text.kv_heads, slots, text.head_dim, dtype=_dtype(graphs))
        for slots in sizes.capacities
        for _ in range(2)
    ]
    column = torch.zeros(sizes.batch, 1, dtype=torch.int64)
    start = ("visual_start",) if graphs.gives else ()
    return FaceGraph(
        module=_Decode(graphs, sizes.max_new),
        inputs=(
            column,
            column + sizes.prompt,
            torch.full((sizes.batch,), sizes.prompt),
            torch.zeros(1, dtype=torch.int64),
            *past,
            *(torch.ones(sizes.batch, dtype=torch.int64) for _ in start),
        ),
        input_names=(
            "input_ids",
            "position_ids",
            "prompt_lengths",
            "step",
            *_kv_names("past_key_values", sizes),
            *start,
        ),
        output_names=("logits", *_kv_names("present", sizes), *graphs.gives),
    )


def kept_name(site: str) -> str:
    """The prefill output with the ids kept behind a site of the language model."""
    return f"kept_indices.{site.rpartition('.')[2]}"


def _kv_names(stem: str, sizes: Shapes) -> tuple[str, ...]:
    return tuple(f"{stem}.{layer}.{part}" for layer in range(len(sizes.rows)) for part in ("key", "value"))
