"""Taps: what a method may read, each computed beside the block from the block's own weights.

A tap projects from the block's input and only the rows that were asked for, so the block keeps its fused attention;
after lowering, the shared projections are merged with the block's own.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tokcarve.passes.blocks import VisionBlock

__all__ = ["TAPS", "ClsAttention", "Tokens", "Values", "needs_cls"]


class ClsAttention(nn.Module):
    """Attention probabilities of the [CLS] row of one block: float32 [batch, heads, 1 + tokens], sums to 1.

    `alive` [batch, tokens] removes dead tokens from the softmax (None: all are alive).
    """

    def __init__(self, block: VisionBlock) -> None:
        super().__init__()
        self.block = block

    def forward(
        self, hidden: Float[Tensor, "batch rows hidden"], alive: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch heads rows"]:
        rows = self.block.normed(hidden)
        query = self.block.project("q", rows[:, :1]).float()
        key = self.block.project("k", rows).float()
        logits = (query * self.block.scale) @ key.transpose(-1, -2)
        if alive is not None:
            everyone = torch.cat([torch.ones_like(alive[:, :1]), alive], dim=1)
            logits = torch.where(everyone[:, None, None], logits, torch.finfo(torch.float32).min)
        return torch.softmax(logits, dim=-1).squeeze(2)


class Values(nn.Module):
    """Value vectors of one block, every row including [CLS]: float32 [batch, heads, prefix + tokens, head_dim]."""

    def __init__(self, block: VisionBlock) -> None:
        super().__init__()
        self.block = block

    def forward(
        self, hidden: Float[Tensor, "batch rows hidden"], alive: Tensor | None = None
    ) -> Float[Tensor, "batch heads rows dim"]:
        return self.block.project("v", self.block.normed(hidden)).float()


class Tokens(nn.Module):
    """The tokens themselves as they leave the site, without prefix rows: float32 [batch, tokens, hidden]."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, hidden: Float[Tensor, "batch rows hidden"]) -> Float[Tensor, "batch tokens hidden"]:
        return hidden[:, self.prefix :].float()


# a tap that reads a block is built from the block; "tokens" reads the site's output
TAPS: dict[str, type[nn.Module]] = {"cls_attention": ClsAttention, "values": Values, "tokens": Tokens}


def needs_cls(reads: tuple[str, ...]) -> bool:
    """Whether a method with these taps can only serve a tower that has a [CLS] token."""
    return "cls_attention" in reads
