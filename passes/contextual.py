"""Dominant and contextual tokens: what VisionZip and VisionDrop share, after arXiv:2412.04467, section 3.

The best tokens stay as they are; anchors, evenly spaced over the rest, gain the mean of the tokens whose head-mean keys
are most alike to theirs. In the vision tower [CLS] stays too, ahead of the patches it attends to most.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokcarve.passes.bipartite import Order
from tokcarve.passes.choose import best, one_hot, sorting, take, top_in_order, top_mask, unit
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.stage import Carry, Outcome, Rule, Signals, Stage

__all__ = ["fold", "folding", "folding_stage"]


def fold(
    score: Float[Tensor, "batch n"],
    keys: Float[Tensor, "batch n dim"],
    chosen: int,
    contextual: int,
    ahead: Int[Tensor, "batch k"] | None = None,
) -> Outcome:
    """Index, weights and sources of a merge into the rows `ahead` and the `chosen` best, both as they are, and behind
    them `contextual` anchors with what is folded into them; every group ascends."""
    total = score.shape[1]
    step = (total - chosen) // max(contextual, 1)
    dominant = top_mask(score, chosen)
    rest = top_in_order((~dominant).float(), total - chosen)
    index = [] if ahead is None else [ahead]
    if chosen:
        index.append(top_in_order(dominant.float(), chosen))
    weights = score.new_zeros(score.shape[0], sum(part.shape[1] for part in index), total - chosen)
    if contextual:
        keys = unit(take(keys, rest))
        anchors = slice(0, step * (contextual - 1) + 1, step)
        index.append(rest[:, anchors])
        place = torch.arange(total - chosen, device=score.device)
        folded = (place % step > 0) | (place >= step * contextual)
        joins = one_hot(best(keys @ keys[:, anchors].transpose(1, 2)), contextual) * folded.unsqueeze(1)
        means = joins / joins.sum(dim=1, keepdim=True).clamp_min(1)
        weights = torch.cat([weights, means.transpose(1, 2)], dim=1)
    made = torch.cat(index, dim=1)
    return {"index": made, "weights": weights, "sources": rest, "own": torch.ones_like(made).float()}


def folding(total: int, tokens: int, contextual: int, order: Order) -> Rule:
    """The rule of a merge of `total` patches and [CLS] into `tokens`, of which the last `contextual` are folded."""

    def rule(signals: Signals, carry: Carry) -> Outcome:
        score = signals["cls_attention"].sum(dim=1)[:, 1:]
        cls = score.new_full((score.shape[0], 1), -1).long()
        made = fold(score, signals["keys"].mean(dim=1)[:, 1:], tokens - contextual - 1, contextual, ahead=cls)
        if order == "raster":
            rising = sorting(made["index"], total)
            made |= {name: take(made[name], rising) for name in ("index", "weights")}
        return made

    return rule


def folding_stage(geometry: Geometry, tokens: int, contextual: int, order: Order) -> Stage:
    """That merge behind the last used vision layer."""
    return Stage(
        site=f"vision.layers.{geometry.vision.layers_used - 1}",
        reads=("cls_attention", "keys"),
        rule=folding(geometry.total, tokens, contextual, order),
        how="merge",
        keep=tokens,
        takes_cls=True,
    )
