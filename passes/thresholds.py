"""Two thresholds, of importance and of place on a grid: how far a token passes either, and what samples say of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tokcarve.passes.choose import LOWEST, one_hot
from tokcarve.passes.decide import least_and_most, typical
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.schedule import divided_as
from tokcarve.passes.stage import Carry, Decision, Look, Method, Outcome, Rule, Signals, Stage

__all__ = ["Passing", "attended", "level_for", "margin", "neutral", "on_grid", "rule_of", "worth_of"]

SAMPLED = 3.0  # ATP-LLaVA's lambda
_ALWAYS = 2.0  # above every worth: what passes for its place passes any threshold of importance


def worth_of(seen: Tensor, alive: Tensor) -> Tensor:
    """Attention [batch, n] from 0 for the least attended living token to 1 for the most."""
    there = alive > 0.5 * alive.amax(dim=1, keepdim=True)
    low = torch.where(there, seen, -LOWEST).amin(dim=1, keepdim=True)
    high = torch.where(there, seen, LOWEST).amax(dim=1, keepdim=True)
    return ((seen - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)


def margin(seen: Tensor, alive: Tensor, importance: Tensor, place: Tensor, spatial: Tensor) -> Tensor:
    """ATP-LLaVA's eq. 9 to 11 before the sigmoid: [batch, n] of attention `seen`, thresholds [batch, 1] and eq. 5's
    `spatial`; a thousandth of the worth tells equal margins apart."""
    worth = worth_of(seen, alive)
    return torch.maximum(worth - importance, spatial - place) + 0.001 * worth


def neutral(stride: int) -> float:
    """The threshold of place that a token of the grid meets and does not pass: importance alone says who passes, and
    of those who do not, the grid comes first."""
    return 1 - SAMPLED / stride**2


def on_grid(geometry: Geometry, stride: int) -> Tensor:
    """Eq. 5, float32 [n]; off the grid nothing passes for its place."""
    cell, columns = torch.arange(geometry.total), geometry.vision.grid[1]
    sampled = (cell // columns % stride + cell % columns % stride) == 0
    return torch.where(sampled, neutral(stride), min(-1.0, neutral(stride) - 1))


def attended(signals: Signals, alive: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 3 and 4: attention [batch, n] that a token receives from the living visual rows, and from the text rows."""
    own = (alive.unsqueeze(1) @ signals["visual_attention"]).squeeze(1)
    rows = signals["asked"].sum(dim=1, keepdim=True).clamp_min(1)
    cross = signals["text_attention"].mean(dim=1).sum(dim=1) / rows
    return own / alive.sum(dim=1, keepdim=True).clamp_min(1e-6), cross


def rule_of(spatial: Tensor, limits: Tensor | Callable[[Tensor], Tensor]) -> Rule:
    """Scores by the margin, [batch, n]. limits: of importance and place, [1, 2], or what makes [batch, 2] of eq. 6's
    attention of both kinds, [batch, 2 total], where what is gone holds zero in its slot."""

    def rule(signals: Signals, carry: Carry) -> Outcome:
        each, device = signals["visual_attention"], signals["visual_attention"].device
        slot = carry.get("slot", torch.arange(each.shape[1], device=device).expand(each.shape[0], -1))
        alive = signals.get("alive", torch.ones_like(each[:, 0]))
        own, cross = attended(signals, alive)
        places = one_hot(slot, len(spatial))
        if isinstance(limits, Tensor):
            passed = limits.to(device)
        else:
            spread = [((alive * one).unsqueeze(1) @ places).squeeze(1) for one in (own, cross)]
            passed = limits(torch.cat(spread, dim=1))
        score = margin((own + cross) / 2, alive, passed[:, :1], passed[:, 1:], places @ spatial.to(device))
        return {"score": score, "slot": slot}

    return rule


def level_for(levels: Sequence[tuple[float, float]], budget: float) -> float:
    """The least level above which no more than `budget` lies, of pairs (level, weight); -1 where all of it may."""
    above = 0.0
    for level, weight in sorted(levels, reverse=True):
        above += weight
        if above > budget * (1 + 1e-9):
            return level
    return -1.0


@dataclass(frozen=True)
class Passing(Decision):
    """Looks, in the unpruned model, at how many tokens pass behind every one of `planned`; who passes behind one passes
    behind all before it.

    planned: counts without samples, whose mean over layers stays, and whose last. importance: None to find the one at
    which the mean number that passes, summed over layers, comes to that; place: the other threshold, as it is; spatial
    [n]: see on_grid. `fix` makes the method of both thresholds and of the counts.
    """

    geometry: Geometry
    planned: Mapping[str, int]
    importance: float | None
    place: float
    spatial: Tensor
    quantile: float | None
    fix: Callable[[tuple[float, float], tuple[int, ...]], Method]

    def stages(self) -> tuple[Stage, ...]:
        """Each gives, by token, up to which threshold of importance it would have passed so far."""
        return tuple(self._at(i, site) for i, site in enumerate(self.planned))

    def _at(self, i: int, site: str) -> Stage:
        def rule(signals: Signals, carry: Carry) -> Outcome:
            alive = torch.ones_like(signals["visual_attention"][:, 0])
            level = worth_of(sum(attended(signals, alive)) / 2, alive)  # type: ignore[arg-type]
            level = torch.where(self.spatial.to(level.device) > self.place, _ALWAYS, level)
            level = torch.minimum(level, carry["level"]) if carry else level
            return {"level": level, f"level{i}": level}

        return Stage(
            site=site,
            reads=("visual_attention", "text_attention", "asked"),
            rule=rule,
            how="observe",
            keep=self.geometry.total,
            carries=("level",),
            gives=(f"level{i}",),
        )

    def measure(self, given: Mapping[str, Tensor]) -> dict[str, Any]:
        """Those levels, cut by cut, the highest first."""
        found = [given[f"level{i}"][0].sort(descending=True).values.tolist() for i in range(len(self.planned))]
        return {"levels": found}

    def settle(self, looks: Sequence[Look]) -> tuple[Method, dict[str, list[int | float]]]:
        """One threshold for all cuts; the counts are what passes there, divided so that the mean stays."""
        ends = [int(site.rpartition(".")[2]) for site in self.planned]
        spans = [later - one for one, later in zip(ends, [*ends[1:], self.geometry.text.layers - 1], strict=True)]
        budget = math.fsum(n * count for n, count in zip(spans, self.planned.values(), strict=True)) * len(looks)
        importance = self.importance
        if importance is None:
            cuts = ((float(span), cut) for look in looks for span, cut in zip(spans, look.seen["levels"], strict=True))
            importance = min(1.0, max(0.0, level_for([(level, span) for span, cut in cuts for level in cut], budget)))
        passing = [[sum(one > importance for one in cut) for cut in look.seen["levels"]] for look in looks]
        by_cut = dict(zip(self.planned, zip(*passing, strict=True), strict=True))
        wanted = {site: typical(found, self.quantile) for site, found in by_cut.items()}
        counts = divided_as(wanted, self.planned, self.geometry.total)
        spread = {f"passing {site}": least_and_most(found) for site, found in by_cut.items()}
        return self.fix((importance, self.place), tuple(counts.values())[:-1]), spread
