"""Schedules of one mean: counts that fall with depth, and what they may be without costing a row more."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokcarve.passes.stage import Span

__all__ = ["EqualMean", "layers_between"]


def layers_between(layers: int, sites: Sequence[str]) -> tuple[int, ...]:
    """How many of `layers` language layers run before the first of `sites`, between each two, and behind the last."""
    ends = [0, *(int(site.rpartition(".")[2]) + 1 for site in sites), layers]
    return tuple(later - earlier for earlier, later in zip(ends, ends[1:], strict=False))


@dataclass(frozen=True, kw_only=True)
class EqualMean:
    """`counts` of `total` tokens, each in as many `layers` of the language model, and others that come to as much.

    A point has `entering`, the share of `total` that enters, and `ratios.0` and so on, the share of it that stays
    behind a cut; what the budget then leaves goes to one count, which no point has: the last, or with `exact`, where
    the last is as it is, the one before it.
    """

    total: int
    counts: tuple[int, ...]
    layers: tuple[int, ...]
    exact: bool

    @property
    def solved(self) -> int:
        """Which of the counts the budget solves; those before it are free."""
        return len(self.counts) - 1 - self.exact

    def space(self, low: float, high: float, least: float) -> dict[str, Span]:
        """What may enter, from `low` to `high` times the mean as far as the budget allows; ratios from `least` on."""
        if self.solved < 1:
            return {}
        mean = self._rows / sum(self.layers)
        ends = [self.at({"entering": times * mean / self.total})[0] / self.total for times in (low, high)]
        first = {"entering": Span(low=ends[0], high=ends[1], start=self.counts[0] / self.total, of="ratios")}
        stay = self.ratios({})
        return first | {
            f"ratios.{cut}": Span(low=least, high=1.0, start=stay[cut], of="ratios") for cut in range(self.solved - 1)
        }

    def at(self, point: Mapping[str, float]) -> tuple[int, ...]:
        """The counts at a point: of at most as many rows in all, and of fewer only by less than a token in every layer
        of one count; what a point asks for and the budget does not allow becomes the nearest that it does."""
        if "entering" not in point:
            return self.counts
        wanted = point["entering"] * self.total
        found = list[int]()
        for place in range(self.solved):
            found.append(self._nearest(wanted, found))
            wanted = found[-1] * point.get(f"ratios.{place}", 1.0)
        found.append(min(found[-1], self._left(found) // self.layers[self.solved]))
        return (*found, *self.counts[self.solved + 1 :])

    def ratios(self, point: Mapping[str, float]) -> tuple[float, ...]:
        """What share of the counts at a point stays behind each cut."""
        counts = self.at(point)
        return tuple(behind / before for before, behind in zip(counts, counts[1:], strict=False))

    @property
    def _rows(self) -> int:
        return self._spent(self.counts)

    def _spent(self, counts: Sequence[int]) -> int:
        return sum(count * layers for count, layers in zip(counts, self.layers, strict=False))

    def _left(self, before: Sequence[int]) -> int:
        """Rows for the counts behind `before`, up to the one that is solved."""
        fixed = self.counts[-1] * self.layers[-1] if self.exact else 0
        return self._rows - fixed - self._spent(before)

    def _nearest(self, wanted: float, before: Sequence[int]) -> int:
        """The count next to `wanted` behind which the budget can be met: by counts as large, or by the least."""
        here, behind = self.layers[len(before)], sum(self.layers[len(before) + 1 : self.solved + 1])
        least = self.counts[-1] if self.exact else 1
        low = -(-self._left(before) // (here + behind))
        high = (self._left(before) - least * behind) // here
        return min(max(round(wanted), low), high, before[-1] if before else self.total)
