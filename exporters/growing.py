"""The language model as one graph with a growing cache, and what embeds for it: the form that runtimes with a loop of
their own expect (onnxruntime-genai, transformers.js).

One graph reads a prompt and every later token: it takes as many rows as it is given behind as many as are cached. Here
nothing is dropped in the language model; `forked` adds the prompt that is.
"""

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
    "cache_names",
    "growing_mask",
    "growing_text",
    "merged",
    "merged_embedding",
    "text_graph",
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


def text_graph(graphs: TokenGraphs, module: nn.Module, *, batch: int, width: int, rows: int = 5) -> FaceGraph:
    """`module` as a graph with the ends of `growing_text`, its embeddings `width` wide, an example `rows` long."""
    text, cached = graphs.geometry.text, _EXAMPLE_CACHED
    past, present = (cache_names(stem, text.layers) for stem in ("past_key_values", "present"))
    return FaceGraph(
        module=module,
        inputs=(
            torch.zeros(batch, rows, width),
            torch.ones(batch, cached + rows, dtype=torch.int64),
            torch.arange(rows).expand(batch, -1).contiguous(),
            *(torch.zeros(batch, text.kv_heads, cached, text.head_dim) for _ in past),
        ),
        input_names=("inputs_embeds", "attention_mask", "position_ids", *past),
        output_names=("logits", *present),
        opens={
            "inputs_embeds": {1: ROWS},
            "attention_mask": {1: TOTAL},
            "position_ids": {1: ROWS},
            **{name: {2: CACHED} for name in past},
            **{name: {2: TOTAL} for name in present},
        },
    )


def growing_text(graphs: TokenGraphs, batch: int = 1) -> FaceGraph:
    """The unpruned language model: inputs_embeds [batch, rows, hidden], attention_mask int64 [batch, total],
    position_ids int64 [batch, rows], past_key_values.{layer}.{key,value} [batch, kv_heads, cached, head_dim] -> logits
    [batch, 1, vocab], present.{layer}.{key,value} [batch, kv_heads, total, head_dim]; total = cached + rows.
    """
    return text_graph(graphs, _Text(graphs), batch=batch, width=graphs.geometry.text.hidden)


class _Tokens(nn.Module):
    def __init__(self, tokens: nn.Module, more: int) -> None:
        super().__init__()
        self.tokens, self.more = tokens, more

    def forward(self, input_ids: Tensor) -> Tensor:
        rows: Tensor = self.tokens(input_ids)
        return nn.functional.pad(rows, (0, self.more)) if self.more else rows


def token_embedding(graphs: TokenGraphs, batch: int = 1, *, more: int = 0) -> FaceGraph:
    """The table alone: input_ids int64 [batch, rows] -> inputs_embeds [batch, rows, hidden + more], then zeros."""
    return FaceGraph(
        module=_Tokens(graphs.parts.embed_tokens, more),
        inputs=(torch.zeros(batch, _EXAMPLE_ROWS, dtype=torch.int64),),
        input_names=("input_ids",),
        output_names=("inputs_embeds",),
        opens={"input_ids": {1: ROWS}, "inputs_embeds": {1: ROWS}},
    )


def merged(
    text: Float[Tensor, "batch rows wide"],
    image: Bool[Tensor, "batch rows"],
    image_features: Float[Tensor, "batch tokens wide"],
) -> Float[Tensor, "batch rows wide"]:
    """`text` with visual token j in place of the j-th row where `image` is true. There may be fewer visual tokens than
    such rows, or none: the rest are rows of zeros."""
    # behind the last visual token a row of zeros, so that there is something to pick where there are none
    features = torch.cat([image_features, torch.zeros_like(text[:, :1])], dim=1)
    rank = (torch.cumsum(image.long(), dim=1) - 1).clamp(min=0)
    rank = torch.minimum(rank, torch.ones_like(rank) * image_features.shape[1])
    visual = torch.gather(features, 1, rank.unsqueeze(-1).expand(-1, -1, text.shape[2]))
    return torch.where(image.unsqueeze(-1), visual, text)


class _Merge(nn.Module):
    def __init__(self, graphs: TokenGraphs) -> None:
        super().__init__()
        self.tokens, self.image = graphs.parts.embed_tokens, graphs.geometry.image_token_id

    def forward(self, input_ids: Tensor, image_features: Tensor) -> Tensor:
        image = input_ids == self.image
        return merged(self.tokens(torch.where(image, 0, input_ids)), image, image_features)


def merged_embedding(graphs: TokenGraphs, batch: int = 1) -> FaceGraph:
    """input_ids int64 [batch, rows], image_features [batch, tokens, hidden] -> inputs_embeds [batch, rows, hidden], as
    `merged` has it."""
    hidden = graphs.geometry.text.hidden
    return FaceGraph(
        module=_Merge(graphs),
        inputs=(torch.zeros(batch, _EXAMPLE_ROWS, dtype=torch.int64), torch.zeros(batch, _EXAMPLE_TOKENS, hidden)),
        input_names=("input_ids", "image_features"),
        output_names=("inputs_embeds",),
        opens={"input_ids": {1: ROWS}, "image_features": {1: TOKENS}, "inputs_embeds": {1: ROWS}},
    )
