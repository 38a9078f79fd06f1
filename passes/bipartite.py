"""Merging pairs of tokens inside vision layers: the part that ToMe and Turbo share, after arXiv:2210.09461, section 3.

Every second token may go (a), the others may take one in (b). A merged token is the mean of the patches it holds, so
its weights are one-hot over sizes, and it grows around the patch of its b token.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tokcarve.passes.choose import best, one_hot, sorting, take, top_in_order, top_mask, unit
from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.stage import Carry, Outcome, Rule, Signals, Stage

__all__ = ["Order", "Worth", "alike", "merge_pairs", "merging_stages", "removals"]

Order = Literal["raster", "published"]
Worth = Callable[[Signals], Tensor | float]


def removals(total: int, tokens: int, layers: int, title: str) -> list[int]:
    """How many tokens go in each of `layers`: total - tokens in all, never more than needed, the larger first.

    MethodError for a count that halving in every layer does not reach.
    """

    def at(rate: int) -> list[int]:
        left, plan = total, list[int]()
        for _ in range(layers):
            plan.append(min(rate, left // 2))
            left -= plan[-1]
        return plan

    wanted, least = total - tokens, total - sum(at(total))
    if tokens < least:
        raise MethodError(
            f"{title} merges at most half of the tokens in each of the {layers} vision layers in use, which leaves "
            f"{least} of {total}; {tokens} were asked for: keep {least} or more"
        )
    rate = next(rate for rate in range(total + 1) if sum(at(rate)) >= wanted)
    plan = at(rate)
    for i in reversed(range(layers)):
        if sum(plan) > wanted and plan[i] == rate:
            plan[i] -= 1
    return plan


def alike(keys: Float[Tensor, "batch heads rows dim"], prefix: int) -> Float[Tensor, "batch a b"]:
    """Cosine between the head-mean keys of the patches that may go and of those that may take one in."""
    metric = unit(keys.mean(dim=1)[:, prefix:])
    similar: Tensor = metric[:, prefix::2] @ metric[:, 1 - prefix :: 2].transpose(1, 2)
    return similar


def merge_pairs(
    similar: Float[Tensor, "batch a b"], worth: Tensor | float, carry: Carry, remove: int, prefix: int
) -> Outcome:
    """Merges the `remove` patches that are most alike to another, less their `worth` [batch, a], into that other."""
    batch, count, sinks = similar.shape
    every = torch.arange(count + sinks, device=similar.device).expand(batch, -1)
    size, origin = carry.get("size", torch.ones_like(every).float()), carry.get("origin", every)
    going = every[:, prefix::2]
    gone = top_mask(similar.amax(dim=2) - worth, remove)
    chosen = top_in_order(gone.float(), remove)
    staying = [take(going, top_in_order((~gone).float(), count - remove))] if count > remove else []
    index = torch.cat([*staying, every[:, 1 - prefix :: 2]], dim=1)
    sources = take(going, chosen)
    lands = one_hot(take(best(similar), chosen), sinks).transpose(1, 2) * take(size, sources).unsqueeze(1)
    came = torch.cat([lands.new_zeros(batch, count - remove, remove), lands], dim=1)
    own = take(size, index)
    grown = own + came.sum(dim=2)
    made = {"weights": came / grown.unsqueeze(2), "own": own / grown, "size": grown, "bias": torch.log(grown)}
    return {**made, "index": index, "sources": sources, "origin": take(origin, index)}


def merging_stages(
    geometry: Geometry, plan: list[int], reads: tuple[str, ...], worth: Worth, order: Order, proportional: bool
) -> tuple[Stage, ...]:
    """One merge between attention and MLP of every layer that `plan` gives one; "raster" sorts behind the last.

    `proportional` makes later attention count a token as often as it holds patches: log(size) on its logits.
    """
    left, stages, last = geometry.total, list[Stage](), max(i for i, remove in enumerate(plan) if remove)
    for i, remove in enumerate(plan):
        if not remove:
            continue
        left -= remove
        rule = _rule(worth, remove, geometry, order == "raster" and i == last)
        stages.append(
            Stage(
                site=f"vision.layers.{i}.attention",
                reads=reads,
                rule=rule,
                how="merge",
                keep=left,
                carries=("size", "origin"),
                biases=proportional,
            )
        )
    return tuple(stages)


def _rule(worth: Worth, remove: int, geometry: Geometry, sorts: bool) -> Rule:
    prefix, total = geometry.vision.prefix, geometry.total

    def rule(signals: Signals, carry: Carry) -> Outcome:
        made = merge_pairs(alike(signals["keys"], prefix), worth(signals), carry, remove, prefix)
        if not sorts:
            return made
        rising = sorting(made["origin"], total)
        return {name: value if name == "sources" else take(value, rising) for name, value in made.items()}

    return rule
