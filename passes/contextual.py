"""Dominant and contextual tokens: what VisionZip and VisionDrop share, after arXiv:2412.04467, section 3.

[CLS] and the patches it attends to stay as they are; anchors, evenly spaced over the rest, gain the mean of the patches
whose head-mean keys are most alike to theirs.
"""

import torch

from tokcarve.passes.bipartite import Order
from tokcarve.passes.choose import best, one_hot, sorting, take, top_in_order, top_mask, unit
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.stage import Carry, Outcome, Rule, Signals, Stage

__all__ = ["folding", "folding_stage"]


def folding(total: int, tokens: int, contextual: int, order: Order) -> Rule:
    """The rule of a merge of `total` patches and [CLS] into `tokens`, of which the last `contextual` are folded."""
    chosen = tokens - contextual - 1
    step = (total - chosen) // max(contextual, 1)

    def rule(signals: Signals, carry: Carry) -> Outcome:
        score = signals["cls_attention"].sum(dim=1)[:, 1:]
        dominant = top_mask(score, chosen)
        rest = top_in_order((~dominant).float(), total - chosen)
        index = [score.new_full((score.shape[0], 1), -1).long()]
        if chosen:
            index.append(top_in_order(dominant.float(), chosen))
        weights = score.new_zeros(score.shape[0], tokens - contextual, total - chosen)
        if contextual:
            keys = unit(take(signals["keys"].mean(dim=1)[:, 1:], rest))
            anchors = slice(0, step * (contextual - 1) + 1, step)
            index.append(rest[:, anchors])
            place = torch.arange(total - chosen, device=score.device)
            folded = (place % step > 0) | (place >= step * contextual)
            joins = one_hot(best(keys @ keys[:, anchors].transpose(1, 2)), contextual) * folded.unsqueeze(1)
            means = joins / joins.sum(dim=1, keepdim=True).clamp_min(1)
            weights = torch.cat([weights, means.transpose(1, 2)], dim=1)
        made = {"index": torch.cat(index, dim=1), "weights": weights}
        if order == "raster":
            rising = sorting(made["index"], total)
            made = {name: take(value, rising) for name, value in made.items()}
        return {**made, "sources": rest, "own": torch.ones_like(made["index"]).float()}

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
