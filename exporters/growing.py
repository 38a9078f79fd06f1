"""The language model as one graph with a growing cache, and what embeds for it: the form that runtimes with a loop of
their own expect (onnxruntime-genai, transformers.js).

One graph reads a prompt and every later token: it takes as many rows as it is given behind as many as are cached. Here
nothing is dropped in the language model; `forked` adds the prompt that is.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tokcarve.exporters.modules import FaceGraph
from tokcarve.passes.graph import TokenGraphs

__all__ = [
    "CACHED",
    "ROWS",
    "TOKENS",
    "TOTAL",
    "Merge",
    "cache_inputs",
    "cache_names",
    "growing_mask",
    "growing_text",
    "merged_embedding",
    "token_embedding",
]

ROWS, CACHED, TOTAL, TOKENS = "sequence_length", "past_sequence_length", "total_sequence_length", "image_tokens"
"""Names of open dimensions: rows of this run, rows cached before it, both together, and visual tokens that come in."""

# of an example to trace with: all different, and none is 0 or 1, which torch would take for a constant
_EXAMPLE_ROWS, _EXAMPLE_CACHED, _EXAMPLE_TOKENS = 5, 7, 3


def growing_mask(
    hidden: Float[Tensor, "batch rows hidden"],
    attention_mask: Int[Tensor, "batch total"],
    past_key: Float[Tensor, "batch heads cached dim"],
) -> Bool[Tensor, "batch 1 rows total1"]:
    """True where a new row may attend: to itself and what came before it, as far as `attention_mask` is not 0."""
    rows, cached = hidden.shape[1], past_key.shape[2]
    order = torch.arange(cached + rows, device=hidden.device)
    causal = order.unsqueeze(0) <= (cached + torch.arange(rows, device=hidden.device)).unsqueeze(1)
    # picked by place, so that nothing ties the length of the mask to those of the other inputs
    real = torch.index_select(attention_mask, 1, order) != 0
    return causal.unsqueeze(0).unsqueeze(0) & real.unsqueeze(1).unsqueeze(1)


class _Text(nn.Module):
    """Rows [batch, rows, hidden] behind a cache -> logits [batch, 1, vocab] of the last one, the cache with them."""

    def __init__(self, graphs: TokenGraphs) -> None:
        super().__init__()
        self.layers = nn.ModuleList(graphs.parts.text_blocks)
        self.rotary, self.norm, self.head = graphs.parts.rotary, graphs.parts.norm, graphs.parts.head

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        mask = growing_mask(inputs_embeds, attention_mask, past[0])
        hidden, (cos, sin) = inputs_embeds, self.rotary(inputs_embeds, position_ids)
        present = list[Tensor]()
        for layer, key, value in zip(self.layers, past[::2], past[1::2], strict=True):
            hidden, new_key, new_value = layer(hidden, mask, cos, sin, key, value)
            present += [torch.cat([key, new_key], dim=2), torch.cat([value, new_value], dim=2)]
        return self.head(self.norm(hidden[:, -1:])), *present


def cache_names(stem: str, layers: int) -> tuple[str, ...]:
    """Names of the keys and values of all layers; `stem` is "past_key_values" or "present"."""
    return tuple(f"{stem}.{layer}.{part}" for layer in range(layers) for part in ("key", "value"))


def cache_inputs(graphs: TokenGraphs, batch: int) -> Iterator[tuple[str, Tensor, dict[int, str]]]:
    """Every cache that a graph takes: name, an example float32 [batch, kv_heads, cached, head_dim], open dimensions."""
    text = graphs.geometry.text
    for name in cache_names("past_key_values", text.layers):
        yield name, torch.zeros(batch, text.kv_heads, _EXAMPLE_CACHED, text.head_dim), {2: CACHED}


def growing_text(graphs: TokenGraphs, batch: int = 1, *, wider: int = 0) -> FaceGraph:
    """The unpruned language model: inputs_embeds [batch, rows, hidden], attention_mask int64 [batch, total],
    position_ids int64 [batch, rows], past_key_values.{layer}.{key,value} [batch, kv_heads, cached, head_dim] -> logits
    [batch, 1, vocab], present.{layer}.{key,value} [batch, kv_heads, total, head_dim]; total = cached + rows.

    Embeddings may be `wider` by columns that are not read.
    """
    text, total = graphs.geometry.text, _EXAMPLE_ROWS + _EXAMPLE_CACHED
    caches = list(cache_inputs(graphs, batch))
    present = cache_names("present", text.layers)
    return FaceGraph(
        module=_Text(graphs) if not wider else _Narrowed(_Text(graphs), text.hidden),
        inputs=(
            torch.zeros(batch, _EXAMPLE_ROWS, text.hidden + wider),
            torch.ones(batch, total, dtype=torch.int64),
            torch.arange(_EXAMPLE_ROWS).expand(batch, -1).contiguous(),
            *(tensor for _, tensor, _ in caches),
        ),
        input_names=("inputs_embeds", "attention_mask", "position_ids", *(name for name, _, _ in caches)),
        output_names=("logits", *present),
        opens={
            "inputs_embeds": {1: ROWS},
            "attention_mask": {1: TOTAL},
            "position_ids": {1: ROWS},
            **{name: places for name, _, places in caches},
            **{name: {2: TOTAL} for name in present},
        },
    )


class _Narrowed(nn.Module):
    def __init__(self, text: nn.Module, hidden: int) -> None:
        super().__init__()
        self.text, self.hidden = text, hidden

    def forward(self, inputs_embeds: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        made: tuple[Tensor, ...] = self.text(inputs_embeds[:, :, : self.hidden], *rest)
        return made


class _Tokens(nn.Module):
    def __init__(self, tokens: nn.Module) -> None:
        super().__init__()
        self.tokens = tokens

    def forward(self, input_ids: Tensor) -> Tensor:
        rows: Tensor = self.tokens(input_ids)
        return rows


def token_embedding(graphs: TokenGraphs, batch: int = 1) -> FaceGraph:
    """The table alone: input_ids int64 [batch, rows] -> inputs_embeds [batch, rows, hidden]."""
    return FaceGraph(
        module=_Tokens(graphs.parts.embed_tokens),
        inputs=(torch.zeros(batch, _EXAMPLE_ROWS, dtype=torch.int64),),
        input_names=("input_ids",),
        output_names=("inputs_embeds",),
        opens={"input_ids": {1: ROWS}, "inputs_embeds": {1: ROWS}},
    )


class Merge(nn.Module):
    """Ids [batch, rows] and visual tokens [batch, tokens, hidden] -> input rows, visual token j in place of the j-th
    image token. There may be fewer visual tokens than image tokens, or none: the rest are rows of zeros.

    `alias`: {id: the id whose row it has}. With `flagged` a last column says which rows are visual, 1.0 or 0.0.
    """

    def __init__(self, graphs: TokenGraphs, alias: dict[int, int], *, flagged: bool) -> None:
        super().__init__()
        self.tokens, self.image = graphs.parts.embed_tokens, graphs.geometry.image_token_id
        self.alias, self.flagged = alias, flagged

    def forward(
        self, input_ids: Int[Tensor, "batch rows"], image_features: Float[Tensor, "batch tokens hidden"]
    ) -> Float[Tensor, "batch rows wide"]:
        ids = input_ids
        for given, meant in self.alias.items():
            ids = torch.where(ids == given, meant, ids)
        image = ids == self.image
        text: Tensor = self.tokens(torch.where(image, 0, ids))
        # behind the last visual token a row of zeros, so that there is something to pick where there are none
        features = torch.cat([image_features, torch.zeros_like(text[:, :1])], dim=1)
        rank = (torch.cumsum(image.long(), dim=1) - 1).clamp(min=0)
        rank = torch.minimum(rank, torch.full_like(rank, 1) * image_features.shape[1])
        visual = torch.gather(features, 1, rank.unsqueeze(-1).expand(-1, -1, text.shape[2]))
        rows = torch.where(image.unsqueeze(-1), visual, text)
        return torch.cat([rows, image.unsqueeze(-1).float()], dim=2) if self.flagged else rows


def merged_embedding(
    graphs: TokenGraphs, batch: int = 1, *, alias: dict[int, int] | None = None, flagged: bool = False
) -> FaceGraph:
    """input_ids int64 [batch, rows], image_features [batch, tokens, hidden] -> inputs_embeds, as in Merge."""
    hidden = graphs.geometry.text.hidden
    return FaceGraph(
        module=Merge(graphs, alias or {}, flagged=flagged),
        inputs=(torch.zeros(batch, _EXAMPLE_ROWS, dtype=torch.int64), torch.zeros(batch, _EXAMPLE_TOKENS, hidden)),
        input_names=("input_ids", "image_features"),
        output_names=("inputs_embeds",),
        opens={"input_ids": {1: ROWS}, "image_features": {1: TOKENS}, "inputs_embeds": {1: ROWS}},
    )
