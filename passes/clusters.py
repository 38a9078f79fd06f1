"""Clusters around density peaks: the part of SparseVLM that merges, after arXiv:2204.08680 and 2410.04417.

A row is dense when its nearest rows are near; a centre is dense and far from every denser row.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokcarve.passes.choose import LOWEST, best, falling, one_hot, take, top_in_order, top_mask
from tokcarve.passes.stage import Outcome

__all__ = ["density_peaks", "recycling"]


def recycling(
    score: Float[Tensor, "batch n"], rows: Float[Tensor, "batch n width"], kept: int, recycled: int, clusters: int
) -> Outcome:
    """The merge that leaves the `kept` best tokens as they are and, behind them, the means of as many `clusters` of the
    `recycled` best of the others; a cluster stands for its centre."""
    stays = top_mask(score, kept)
    sources = falling(torch.where(stays, LOWEST, score), recycled)
    centres, joins = density_peaks(take(rows, sources), clusters)
    index = [top_in_order(stays.float(), kept)] if kept else []
    whole, mixed = (joins.new_zeros(len(joins), count, recycled) for count in (kept, clusters))
    return {
        "index": torch.cat([*index, take(sources, centres)], dim=1),
        "sources": sources,
        "weights": torch.cat([whole, joins / joins.sum(dim=2, keepdim=True)], dim=1),
        "own": torch.cat([whole[:, :, 0] + 1, mixed[:, :, 0]], dim=1),
    }


def density_peaks(
    rows: Float[Tensor, "batch n width"], count: int
) -> tuple[Int[Tensor, "batch {count}"], Float[Tensor, "batch {count} n"]]:
    """The rows that are centres of `count` clusters, the clearest first, and 1.0 where a row lies in a cluster.

    Of rows equally dense the earlier counts as denser; a row between two centres goes to the clearer one.
    """
    square = _squares(rows)
    nearest = top_mask(-square.flatten(0, 1), count).view_as(square).float()
    loose = (square * nearest).sum(dim=2) / count
    order = torch.arange(rows.shape[1], device=rows.device)
    mine, other = loose.unsqueeze(2), loose.unsqueeze(1)
    denser = (other < mine) | ((other == mine) & (order < order.unsqueeze(1)))
    far = square.sqrt()
    farthest = far.amax(dim=2, keepdim=True).amax(dim=1, keepdim=True)
    apart = torch.where(denser, far, farthest).amin(dim=2)
    centres = falling(apart * torch.exp(-loose), count)
    # a centre is in its own cluster even where another lies on it
    near = one_hot(centres, rows.shape[1]) - take(far, centres)
    return centres, one_hot(best(near.transpose(1, 2)), count).transpose(1, 2)


def _squares(rows: Float[Tensor, "batch n width"]) -> Float[Tensor, "batch n n"]:
    """Mean squared difference of any two rows, the same both ways, 0 of a row and itself."""
    # centred, what is subtracted is no larger than what is left of it
    rows = rows - rows.mean(dim=1, keepdim=True)
    length, products = (rows * rows).sum(dim=2), rows @ rows.transpose(1, 2)
    # both ways, or rounding would tell two rows apart that are each other's nearest
    square = length.unsqueeze(2) + length.unsqueeze(1) - (products + products.transpose(1, 2))
    order = torch.arange(rows.shape[1], device=rows.device)
    return torch.where(order == order.unsqueeze(1), 0.0, square.clamp_min(0.0) / rows.shape[2])
