"""VFlowOpt: importance from the rows of attention sinks decides once; what is pruned first is recycled cell by cell.

Source      arXiv:2508.05211 (ICCV 2025), code sihany077/VFlowOpt @ 129eeef (CC BY-NC).
Reads       attention [batch, rows, rows] of the last used vision layer; with alpha also pixels [batch, 3, h, w].
Gives       importance [batch, n]: mean attention from the sinks (patches that receive over `threshold` times the mean)
            plus alpha times the softmax of each patch's grey-level entropy in bits; higher means keep. After the
            connector the pruned tokens of a cell of `cell` x `cell` patches become one, weighted by importance; it
            counts as its most important one behind `layers` of the language model, where no more is recycled.
Cost        one attention map and one [keep, n] product.
Differs     the count is exact, and what the last cut leaves: `ratios` say what share stays behind each of `layers`, and
            how many enter follows. One slot per cell comes out of those, and a cell without pruned tokens gives its
            slot to the next best token. No sink: the most attended patch is one. Entropy is the paper's, on 8-bit grey;
            negative importance weighs nothing. Defaults are the reference's at 25 %, where entropy is off. With scope
            "first" the language model drops nothing. Searched cells scale with the grid. Ties to the lower index.
Raises      MethodError for fewer tokens than cells, for layers that the language model does not have, and for another
            number of ratios than of layers.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from tokcarve.passes.choose import take
from tokcarve.passes.equal_mean import EqualMean, layers_between
from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.recycling import cells_of, entropy, grey, importance, recycled
from tokcarve.passes.schedule import dropping, layers_at
from tokcarve.passes.stage import Carry, Frozen, Method, MethodFacts, Outcome, Rule, Signals, Span, Stage

__all__ = ["VFlowOpt"]

PUBLISHED = (9, 19)
SIDE = 27  # patches on a side of the grid in which the reference searches cells of 3 to 24


def _important(signals: Signals, carry: Carry) -> Outcome:
    return {"score": carry["importance"], "importance": carry["importance"]}


@dataclass(frozen=True, kw_only=True)
class VFlowOpt(Method):
    """threshold, alpha, scope, ratios: see the header. cell: side of a recycling cell in patches, not always a whole
    number. layers: dropped behind these layers of the language model, 0-based."""

    threshold: float = 34.76
    alpha: float = 0.0
    cell: float = 15.581
    scope: Literal["all", "first"] = "all"
    ratios: tuple[float, ...] = (0.98334, 0.87733)
    layers: tuple[int, ...] | None = None

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="VFlowOpt",
        stage="after the connector, and in the language model",
        text_aware=False,
        reads=("attention",),
        count="exact, one slot per cell",
        cost="one attention map and one merge",
        source="arXiv:2508.05211",
        licence="CC BY-NC 4.0",
    )

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """Importance behind the last used vision layer, a cut behind the connector and one behind every layer."""
        if tokens == geometry.total:
            return ()
        sites = self._sites(geometry)
        counts = self.counts(geometry.total, tokens, sites)
        cells = cells_of(geometry.vision.grid, self.cell)
        self._check(geometry.total, tokens, sites, cells.shape[1])
        reads = ("attention", "pixels") if self.alpha else ("attention",)
        last, carries = f"vision.layers.{geometry.vision.layers_used - 1}", ("importance",)
        watch = self._watching(geometry)
        planned = [Stage(site=last, reads=reads, rule=watch, how="observe", keep=geometry.total, carries=carries)]
        if counts[0] < geometry.total:
            rule = self._recycling(cells, counts[0])
            planned.append(Stage(site="connector", rule=rule, how="merge", keep=counts[0], carries=carries))
        for site, count in dropping(counts[0], zip(sites, counts[1:], strict=True)):
            planned.append(Stage(site=site, rule=_important, how="choose", keep=count, carries=carries))
        return tuple(planned)

    def counts(self, total: int, tokens: int, sites: tuple[str, ...]) -> tuple[int, ...]:
        """What enters the language model, and what is left behind each of `sites`."""
        shares = self.ratios if sites else ()
        if len(shares) != len(sites):
            raise MethodError(
                f"ratios of vflowopt are {len(shares)}, one for every layer behind which it drops, and it drops behind "
                f"{len(sites)}; give as many of both"
            )
        return tuple(min(total, round(tokens / prod(shares[done:]))) for done in range(len(shares) + 1))

    def space(self, geometry: Geometry, tokens: int, *, exact: bool) -> Mapping[str, Span]:
        """Threshold, alpha, cell, and what enters and stays as far as the budget leaves it open."""
        if tokens == geometry.total:
            return {}
        scale = min(geometry.vision.grid) / SIDE
        return {
            "threshold": Span(low=0.0, high=50.0, start=self.threshold),
            "alpha": Span(low=-1.0, high=1.0, start=self.alpha),
            "cell": Span(low=max(1.0, 3 * scale), high=24 * scale, start=self.cell),
            **self._equal(geometry, tokens, exact).space(1.0, 1.5, 0.8 / 1.5),
        }

    def at(self, point: Mapping[str, float], geometry: Geometry, tokens: int, *, exact: bool) -> tuple[Method, int]:
        """Ratios from what enters and stays, the rest as it is called."""
        own: dict[str, Any] = {name: point[name] for name in ("threshold", "alpha", "cell") if name in point}
        equal = self._equal(geometry, tokens, exact)
        ratios = equal.ratios(point) if "entering" in point else self.ratios
        return replace(self, **own, ratios=ratios), equal.at(point)[-1]

    def _sites(self, geometry: Geometry) -> tuple[str, ...]:
        return layers_at(geometry, self.layers, PUBLISHED) if self.scope == "all" else ()

    def _equal(self, geometry: Geometry, tokens: int, exact: bool) -> EqualMean:
        sites = self._sites(geometry)
        counts, layers = self.counts(geometry.total, tokens, sites), layers_between(geometry.text.layers, sites)
        return EqualMean(total=geometry.total, counts=counts, layers=layers, exact=exact)

    def _check(self, total: int, tokens: int, sites: tuple[str, ...], cells: int) -> None:
        """Refuses a count that does not leave every cell a token behind the connector."""
        if self.counts(total, tokens, sites)[0] >= cells:
            return
        least = next(one for one in range(1, total + 1) if self.counts(total, one, sites)[0] >= cells)
        raise MethodError(
            f"vflowopt with cell={self.cell} recycles into {cells} tokens, and {tokens} were asked for; "
            f"keep {least} or more, or choose a larger cell"
        )

    def _watching(self, geometry: Geometry) -> Rule:
        def watch(signals: Signals, carry: Carry) -> Outcome:
            prefix = geometry.vision.prefix
            score = importance(signals["attention"][:, prefix:, prefix:], self.threshold)
            if self.alpha:
                score = score + self.alpha * torch.softmax(entropy(grey(signals["pixels"], geometry)), dim=1)
            return {"importance": score}

        return watch

    def _recycling(self, cells: Tensor, keep: int) -> Rule:
        def cut(signals: Signals, carry: Carry) -> Outcome:
            score = carry["importance"]
            made = recycled(score, cells.to(score.device), keep)
            return {**made, "importance": take(score, made["index"])}

        return cut
