"""Counts by entropy: where the attention that tokens receive is spread wider, more of them are left."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tokcarve.passes.decide import least_and_most, typical, width
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.schedule import apportion
from tokcarve.passes.stage import Carry, Decision, Look, Method, Outcome, Signals, Stage

__all__ = ["Widths"]


def _seen(signals: Signals, carry: Carry) -> Outcome:
    return {"seen": signals["cls_attention"].sum(dim=1)[:, 1:]}


@dataclass(frozen=True)
class Widths(Decision):
    """Looks, in the unpruned model, at what [CLS] attends to behind the last used vision layer, and at what visual
    tokens attend to among themselves behind all of `sites`, which are in the language model, but the last.

    usual: what enters the language model and is left behind every site without samples. Its last count stays, and so
    does the mean over the layers; the others become as the widths are, see decide.width. `fix` makes the method of
    them.
    """

    geometry: Geometry
    sites: tuple[str, ...]
    usual: tuple[int, ...]
    fix: Callable[[tuple[int, ...]], Method]
    quantile: float | None

    def stages(self) -> tuple[Stage, ...]:
        """What the tower shows is given by the first site of the language model."""
        used, total = self.geometry.vision.layers_used, self.geometry.total
        tower = Stage(
            site=f"vision.layers.{used - 1}",
            reads=("cls_attention",),
            rule=_seen,
            how="observe",
            keep=total,
            carries=("seen",),
        )
        # where there is but one site, it is the last, and only lets the tower's width through
        return (tower, *(self._at(i, site) for i, site in enumerate(self.sites[: max(1, len(self.sites) - 1)])))

    def _at(self, i: int, site: str) -> Stage:
        def rule(signals: Signals, carry: Carry) -> Outcome:
            made = {f"width{i + 1}": width(signals["next_visual_attention"].mean(dim=1))}
            return made if i else {"width0": width(carry["seen"]), **made}

        return Stage(
            site=site,
            reads=("next_visual_attention",),
            rule=rule,
            how="observe",
            keep=self.geometry.total,
            gives=(f"width{i + 1}",) if i else ("width0", "width1"),
        )

    def measure(self, given: Mapping[str, Tensor]) -> dict[str, Any]:
        """How wide each score spreads, in tokens."""
        return {"widths": [float(given[f"width{i}"]) for i in range(len(self.sites))]}

    def settle(self, looks: Sequence[Look]) -> tuple[Method, dict[str, list[int | float]]]:
        """Counts proportional to the typical widths."""
        widths = list(zip(*(look.seen["widths"] for look in looks), strict=True))
        ends = [int(site.rpartition(".")[2]) + 1 for site in self.sites]
        lengths = [end - start for start, end in zip((0, *ends), ends, strict=False)]
        *counts, last = self.usual
        budget = sum(length * count for length, count in zip(lengths, counts, strict=True))
        weights = [typical(one, self.quantile) for one in widths]
        found = apportion(weights, budget, least=last, most=self.geometry.total, lengths=lengths)
        return self.fix(found), {f"width {i}": least_and_most(one) for i, one in enumerate(widths)}
