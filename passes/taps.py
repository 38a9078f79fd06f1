"""Taps: what a method may read, each computed beside the block from the block's own weights.

A tap projects from the block's input and only the rows that were asked for, so the block keeps its fused attention;
after lowering, the shared projections are merged with the block's own. Everything is float32. `mask` is the block's
own (see VisionBlock): a tap sees the attention that the block computes.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tokcarve.passes.blocks import VisionBlock

__all__ = [
    "TAPS",
    "Attention",
    "ClsAttention",
    "ClsQuery",
    "HeadNorms",
    "Keys",
    "Tap",
    "Text",
    "TextPlaces",
    "TextRows",
    "Tokens",
    "Values",
    "needs_cls",
]


def _softmax(logits: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return torch.softmax(logits, dim=-1)
    if mask.dtype == torch.bool:
        return torch.softmax(torch.where(mask, logits, torch.finfo(torch.float32).min), dim=-1)
    return torch.softmax(logits + mask.float(), dim=-1)


class _OfBlock(nn.Module):
    def __init__(self, block: VisionBlock) -> None:
        super().__init__()
        self.block = block


class ClsAttention(_OfBlock):
    """Attention probabilities of the [CLS] row of one block: [batch, heads, 1 + tokens], sums to 1."""

    def forward(
        self, hidden: Float[Tensor, "batch rows hidden"], mask: Tensor | None = None
    ) -> Float[Tensor, "batch heads rows"]:
        rows = self.block.normed(hidden)
        query = self.block.project("q", rows[:, :1]).float()
        key = self.block.project("k", rows).float()
        return _softmax((query * self.block.scale) @ key.transpose(-1, -2), mask).squeeze(2)


class Attention(_OfBlock):
    """The attention map of one block, mean over heads: [batch, rows, rows], every row sums to 1."""

    def forward(
        self, hidden: Float[Tensor, "batch rows hidden"], mask: Tensor | None = None
    ) -> Float[Tensor, "batch rows rows2"]:
        rows = self.block.normed(hidden)
        query = self.block.project("q", rows).float()
        key = self.block.project("k", rows).float()
        return _softmax((query * self.block.scale) @ key.transpose(-1, -2), mask).mean(dim=1)


class HeadNorms(_OfBlock):
    """L2 norm of what every head of one block gives every row, before the heads are mixed: [batch, heads, rows].

    Every row attends to every row, so this computes as much as the block's own attention; no map is read, and none is
    kept where a runtime fuses attention.
    """

    def forward(
        self, hidden: Float[Tensor, "batch rows hidden"], mask: Tensor | None = None
    ) -> Float[Tensor, "batch heads rows"]:
        rows = self.block.normed(hidden)
        query, key, value = (self.block.project(which, rows).float() for which in "qkv")
        added = mask if mask is None or mask.dtype == torch.bool else mask.float()
        given = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=added, scale=self.block.scale)
        norms: Tensor = given.norm(dim=-1)
        return norms


class Keys(_OfBlock):
    """Key vectors of one block before scaling, every row: [batch, heads, prefix + tokens, head_dim]."""

    def forward(
        self, hidden: Float[Tensor, "batch rows hidden"], mask: Tensor | None = None
    ) -> Float[Tensor, "batch heads rows dim"]:
        return self.block.project("k", self.block.normed(hidden)).float()


class Values(_OfBlock):
    """Value vectors of one block, every row: [batch, heads, prefix + tokens, head_dim]."""

    def forward(
        self, hidden: Float[Tensor, "batch rows hidden"], mask: Tensor | None = None
    ) -> Float[Tensor, "batch heads rows dim"]:
        return self.block.project("v", self.block.normed(hidden)).float()


class ClsQuery(_OfBlock):
    """The query vector of the [CLS] row of one block before scaling: [batch, heads, 1, head_dim]."""

    def forward(
        self, hidden: Float[Tensor, "batch rows hidden"], mask: Tensor | None = None
    ) -> Float[Tensor, "batch heads 1 dim"]:
        return self.block.project("q", self.block.normed(hidden[:, :1])).float()


class Tokens(nn.Module):
    """The tokens themselves as they leave the site, without prefix rows: [batch, tokens, hidden]."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, hidden: Float[Tensor, "batch rows hidden"]) -> Float[Tensor, "batch tokens hidden"]:
        return hidden[:, self.prefix :].float()


class _OfPrompt(nn.Module):
    """The question is the text behind the image, or all text of a prompt that ends with the image; padding is left
    out."""

    def __init__(self, embed_tokens: nn.Module, image_token_id: int) -> None:
        super().__init__()
        self.embed_tokens = embed_tokens
        self.image_token_id = image_token_id

    def asked(self, input_ids: Tensor, prompt_lengths: Tensor) -> Tensor:
        """1.0 for every row of the question: [batch, rows]."""
        order = torch.arange(input_ids.shape[1], device=input_ids.device).float()
        image, length = input_ids == self.image_token_id, prompt_lengths.unsqueeze(1).float()
        last = torch.where(image, order, -1.0).amax(dim=1, keepdim=True)
        behind = (order > last) | (last >= length - 1)
        return (behind & ~image & (order < length)).float()

    def rows(self, input_ids: Tensor, asked: Tensor) -> Tensor:
        """Input embeddings [batch, rows, hidden], zero where nothing is asked."""
        image = input_ids == self.image_token_id
        found: Tensor = self.embed_tokens(torch.where(image, 0, input_ids)).float()
        return found * asked.unsqueeze(-1)


class Text(_OfPrompt):
    """Mean input embedding of the question: [batch, hidden]."""

    def forward(
        self, input_ids: Int[Tensor, "batch rows"], prompt_lengths: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch hidden"]:
        asked = self.asked(input_ids, prompt_lengths)
        mean: Tensor = self.rows(input_ids, asked).sum(dim=1) / asked.sum(dim=1, keepdim=True).clamp_min(1)
        return mean


class TextRows(_OfPrompt):
    """Input embeddings of the question: [batch, rows, hidden], zero in the rows of the prompt that are not of it."""

    def forward(
        self, input_ids: Int[Tensor, "batch rows"], prompt_lengths: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch rows hidden"]:
        return self.rows(input_ids, self.asked(input_ids, prompt_lengths))


class TextPlaces(_OfPrompt):
    """Which rows of the prompt are the question: [batch, rows], 1.0 or 0.0."""

    def forward(
        self, input_ids: Int[Tensor, "batch rows"], prompt_lengths: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch rows"]:
        return self.asked(input_ids, prompt_lengths)


@dataclass(frozen=True)
class Tap:
    """How a tap is reached.

    source: "site" reads the rows that leave the site; "block" the site's own layer, from its input; "next" the layer
    behind the site, which need not run; "pixels" is the graph's input itself; "prompt" makes the graph take the prompt
    as two further inputs.
    """

    source: Literal["site", "block", "next", "pixels", "prompt"]
    made_of: type[nn.Module]
    cls: bool = False


TAPS: dict[str, Tap] = {
    "tokens": Tap("site", Tokens),
    "cls_attention": Tap("block", ClsAttention, cls=True),
    "attention": Tap("block", Attention),
    "head_norms": Tap("block", HeadNorms),
    "keys": Tap("block", Keys),
    "values": Tap("block", Values),
    "next_keys": Tap("next", Keys),
    "next_cls_query": Tap("next", ClsQuery, cls=True),
    "pixels": Tap("pixels", nn.Identity),
    "text": Tap("prompt", Text),
    "text_rows": Tap("prompt", TextRows),
    "text_places": Tap("prompt", TextPlaces),
}


def needs_cls(reads: tuple[str, ...]) -> bool:
    """Whether a method with these taps can only serve a tower that has a [CLS] token."""
    return any(tap in TAPS and TAPS[tap].cls for tap in reads)
