"""Choosing: the only top-k of the project. Ties go to the lower index in torch, ONNX Runtime and TensorRT alike.

The top-k supplies nothing but the value of the last kept score, which no tie order can change; which of the equal
scores are kept is then counted by index.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = [
    "LOWEST",
    "alive_after",
    "best",
    "falling",
    "merge",
    "one_hot",
    "order",
    "rank",
    "sorting",
    "take",
    "top_in_order",
    "top_mask",
    "unit",
]

LOWEST = torch.finfo(torch.float32).min / 2  # of a living token; a dead one lies below every living one
_DEAD = 2 * LOWEST


def _first_of_equals(
    score: Float[Tensor, "batch tokens"], bound: Float[Tensor, "batch 1"], keep: int | Tensor
) -> Bool[Tensor, "batch tokens"]:
    """True for the `keep` best tokens, given the `keep`-th best score `bound`."""
    above = score > bound
    equal = score == bound
    room = keep - above.sum(dim=1, keepdim=True)
    return above | (equal & (torch.cumsum(equal.long(), dim=1) <= room))


def _sane(score: Tensor, alive: Tensor | None) -> Tensor:
    # a NaN compares false with everything and would break the exact count
    clean = torch.where(torch.isnan(score), LOWEST, score.float()).clamp(LOWEST, -LOWEST)
    return clean if alive is None else torch.where(alive, clean, _DEAD)


def top_in_order(
    score: Float[Tensor, "batch tokens"], keep: int, alive: Bool[Tensor, "batch tokens"] | None = None
) -> Int[Tensor, "batch {keep}"]:
    """Indices of the `keep` highest scores, ascending; a dead token is only taken when too few are alive."""
    tokens = score.shape[1]
    score = _sane(score, alive)
    bound = torch.topk(score, keep, dim=1).values[:, -1:]
    kept = _first_of_equals(score, bound, keep)
    # unique keys: kept tokens rank by falling distance from the end, so the largest key is the first token
    key = torch.where(kept, tokens - torch.arange(tokens, device=score.device), 0)
    return tokens - torch.topk(key, keep, dim=1).values


def top_mask(score: Float[Tensor, "batch tokens"], keep: int) -> Bool[Tensor, "batch tokens"]:
    """True for the `keep` highest scores, exactly as many, the lower index first among equals."""
    if keep == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    score = _sane(score, None)
    return _first_of_equals(score, torch.topk(score, keep, dim=1).values[:, -1:], keep)


def best(score: Float[Tensor, "*batch tokens"]) -> Int[Tensor, "*batch"]:
    """The index of the highest score, the lowest index among equals, in every runtime."""
    top = score.amax(dim=-1, keepdim=True)
    order = torch.arange(score.shape[-1], device=score.device).float()
    return torch.where(score >= top, order, score.shape[-1] - 1.0).amin(dim=-1).long()


def one_hot(index: Int[Tensor, "*batch"], count: int) -> Float[Tensor, "*batch {count}"]:
    """1.0 at `index` of `count` places, 0.0 elsewhere."""
    return (index.unsqueeze(-1) == torch.arange(count, device=index.device)).float()


def alive_after(
    score: Float[Tensor, "batch tokens"], count: Int[Tensor, " batch"], alive: Bool[Tensor, "batch tokens"]
) -> Bool[Tensor, "batch tokens"]:
    """Which tokens live on when each image keeps its own `count` best of the ones alive now."""
    score = _sane(score, alive)
    falling = torch.topk(score, score.shape[1], dim=1).values
    bound = torch.gather(falling, 1, (count - 1).unsqueeze(1))
    return alive & _first_of_equals(score, bound, count.unsqueeze(1))


def take(rows: Tensor, index: Int[Tensor, "batch keep"], prefix: int = 0) -> Tensor:
    """`rows` [batch, prefix + n, ...] at `index` (counted after the prefix), the prefix rows first and untouched."""
    at = index.view(*index.shape, *([1] * (rows.dim() - 2))).expand(-1, -1, *rows.shape[2:])
    kept = torch.gather(rows[:, prefix:], 1, at)
    return torch.cat([rows[:, :prefix], kept], dim=1) if prefix else kept


def merge(
    rows: Tensor,
    weights: Float[Tensor, "_ keep m"],
    prefix: int = 0,
    *,
    sources: Int[Tensor, "batch m"] | None = None,
    index: Int[Tensor, "batch keep"] | None = None,
    own: Float[Tensor, "batch keep"] | None = None,
) -> Tensor:
    """`weights` times the rows [batch, prefix + n, hidden] at `sources` (default: all n after the prefix), plus `own`
    times the rows at `index`; sums in float32, the prefix rows first and untouched."""
    patches = rows[:, prefix:].float()
    merged = weights @ (patches if sources is None else take(patches, sources))
    if index is not None and own is not None:
        merged = merged + own.unsqueeze(-1) * take(patches, index)
    merged = merged.to(rows.dtype)
    return torch.cat([rows[:, :prefix], merged], dim=1) if prefix else merged


def unit(rows: Float[Tensor, "batch *n width"]) -> Float[Tensor, "batch *n width"]:
    """Every row at length 1; zero stays zero."""
    units: Tensor = rows / rows.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return units


def rank(score: Float[Tensor, "batch n"], peers: Bool[Tensor, "n n"] | None = None) -> Int[Tensor, "batch n"]:
    """How many of its peers (default: all) come before each entry: a higher score, or the same and a lower index."""
    order = torch.arange(score.shape[1], device=score.device)
    mine, other = score.unsqueeze(2), score.unsqueeze(1)
    before = (other > mine) | ((other == mine) & (order < order.unsqueeze(1)))
    return (before if peers is None else before & peers).sum(dim=2)


def sorting(index: Int[Tensor, "batch n"], total: int) -> Int[Tensor, "batch n"]:
    """The permutation that brings unique numbers of -1..total-1 into rising order."""
    return torch.topk(total - index, index.shape[1], dim=1).indices


def falling(score: Float[Tensor, "batch tokens"], keep: int) -> Int[Tensor, "batch {keep}"]:
    """Indices of the `keep` highest scores, the highest first, the lower index first among equals."""
    score = _sane(score, None)
    index = top_in_order(score, keep)
    return take(index, sorting(rank(take(score, index)), keep))


def order(score: Float[Tensor, "batch tokens"]) -> Int[Tensor, "batch tokens"]:
    """All tokens by falling score, the lower index first among equals; for reports, not for exported graphs."""
    return torch.sort(score.float(), dim=1, descending=True, stable=True).indices
