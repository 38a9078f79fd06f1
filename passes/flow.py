"""What FlowCut measures, after arXiv:2505.19536, section 3: what flows from the patches to [CLS], or from the visual
tokens to the last word, and how much of it a cut may end."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["drop_count", "entropy_ratio", "flows", "shares"]

TINY = torch.finfo(torch.float32).tiny


def shares(
    attention: Float[Tensor, "batch heads rows"],
    values: Float[Tensor, "batch heads rows dim"],
    alive: Bool[Tensor, "batch tokens"] | None = None,
) -> tuple[Float[Tensor, "batch tokens"], Float[Tensor, "batch tokens"]]:
    """Attention share of every patch (sums to 1) and its score; dead patches get 0."""
    similar = (values[:, :, :1] @ values.transpose(-1, -2)).squeeze(2)
    if alive is not None:
        everyone = torch.cat([torch.ones_like(alive[:, :1]), alive], dim=1)
        similar = torch.where(everyone[:, None], similar, torch.finfo(torch.float32).min)
    similar = torch.softmax(similar, dim=-1).mean(dim=1)[:, 1:]
    seen = attention.mean(dim=1)[:, 1:]
    # [CLS] may keep all of its attention to itself
    seen = seen / seen.sum(dim=1, keepdim=True).clamp_min(TINY)
    similar = similar / similar.sum(dim=1, keepdim=True).clamp_min(TINY)
    strength = values.mean(dim=1).abs().sum(dim=-1)[:, 1:]
    return seen, (seen + similar) * strength


def entropy_ratio(seen: Float[Tensor, "batch tokens"], count: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Entropy of the attention shares over its maximum ln(count), both in nats; 0 for one token."""
    nats = -(seen * torch.log(seen.clamp_min(TINY))).sum(dim=1)
    return nats / torch.log(count).clamp_min(TINY)


def drop_count(count: Tensor, tokens: int, remaining: int, ratio: Tensor) -> Tensor:
    """How many of `count` tokens go, rounded half to even; `remaining` layers are left before the last cut."""
    return torch.round((count - tokens) / math.sqrt(remaining) * (1 - ratio**2))


def flows(
    logits: Float[Tensor, "batch heads tokens"],
    values: Float[Tensor, "batch kv_heads tokens dim"],
    last: Float[Tensor, "batch kv_heads 1 dim"],
) -> Float[Tensor, "batch tokens"]:
    """Score of every visual token by its scaled attention `logits` from the last word and by its value against that
    word's: softmax over the visual tokens alone, and here the products of values are scaled too."""
    seen = torch.softmax(logits, dim=-1).mean(dim=1)
    similar = (last @ values.transpose(-1, -2)).squeeze(2) / math.sqrt(values.shape[-1])
    similar = torch.softmax(similar, dim=-1).mean(dim=1)
    return (seen + similar) * values.mean(dim=1).abs().sum(dim=-1)
