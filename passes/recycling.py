"""What VFlowOpt is made of, after arXiv:2508.05211: how important a patch is, and recycling what is pruned by cell."""

import torch
from jaxtyping import Float
from torch import Tensor

from tokcarve.passes.choose import LOWEST, best, one_hot, take, top_in_order, top_mask
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.stage import Outcome

__all__ = ["cells_of", "entropy", "grey", "importance", "recycled"]

TINY = torch.finfo(torch.float32).tiny
SURE = 1e3  # above every importance


def importance(attention: Float[Tensor, "batch n n2"], threshold: float) -> Float[Tensor, "batch n"]:
    """Mean row of the sinks of an attention map between patches."""
    received = attention.mean(dim=1)
    sink = (received > threshold * received.mean(dim=1, keepdim=True)).float()
    found = sink.sum(dim=1, keepdim=True)
    sink = torch.where(found > 0, sink, one_hot(best(received), received.shape[1]))
    return (sink.unsqueeze(1) @ attention).squeeze(1) / found.clamp_min(1)


def entropy(grey: Float[Tensor, "batch n pixels"]) -> Float[Tensor, "batch n"]:
    """Entropy in bits of the 256 grey levels of each patch."""
    share = torch.stack([(grey == level).float().mean(dim=2) for level in range(256)], dim=2)
    return -(share * torch.log2(share + 1e-10)).sum(dim=2)


def recycled(score: Float[Tensor, "batch n"], cells: Float[Tensor, "n cells"], keep: int) -> Outcome:
    """The `keep` - cells best tokens, and of every cell one token that holds the rest of it."""
    low = ~top_mask(score, keep - cells.shape[1])
    inside = low.unsqueeze(1) & (cells.T > 0)
    heads = one_hot(best(torch.where(inside, score.unsqueeze(1), LOWEST)), score.shape[1])
    head = (heads * inside.any(dim=2, keepdim=True).float()).sum(dim=1) > 0
    index = top_in_order(torch.where(low & ~head, score, SURE), keep)
    picked = one_hot(index, score.shape[1]).sum(dim=1) > 0
    weight = torch.where(low & (head | ~picked), score.clamp_min(TINY), 0.0)
    holds = take(head.float(), index)
    mine = take(cells.expand(score.shape[0], -1, -1), index) * holds.unsqueeze(2)
    share = cells.T * weight.unsqueeze(1) / (weight @ cells).clamp_min(TINY).unsqueeze(2)
    return {"index": index, "weights": mine @ share, "own": 1 - holds}


def cells_of(grid: tuple[int, int], cell: float) -> Float[Tensor, "n cells"]:
    """1.0 where a patch of `grid` (rows, columns) lies in a cell of `cell` x `cell` patches."""
    rows, columns = grid
    across = int((columns - 1) / cell) + 1
    of = [int(r / cell) * across + int(c / cell) for r in range(rows) for c in range(columns)]
    return one_hot(torch.tensor(of), max(of) + 1)


def grey(pixel_values: Float[Tensor, "batch 3 height width"], geometry: Geometry) -> Float[Tensor, "batch n pixels"]:
    """Grey levels 0..255 of each patch: the mean of the 8-bit channels, rounded."""
    vision, patch = geometry.vision, geometry.vision.patch_size
    mean, std = (torch.tensor(v, device=pixel_values.device).view(3, 1, 1) for v in (vision.mean, vision.std))
    levels = torch.round((pixel_values.float() * std + mean) * 255).clamp(0, 255)
    rows, columns = vision.grid
    patches = torch.round(levels.mean(dim=1)).view(-1, rows, patch, columns, patch).transpose(2, 3)
    return patches.reshape(-1, rows * columns, patch * patch)
