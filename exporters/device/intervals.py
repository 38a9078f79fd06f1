"""How sure a median is: 95 % intervals from order statistics, which assume no distribution.

Of n independent samples the l-th smallest and the l-th largest hold the true median between them unless fewer than l
fall on one side of it, and how many do is a fair coin's binomial, whatever the samples are distributed like. Samples
that follow each other on one machine are not independent: where neighbours tend to lie on one side of the median, the
interval is widened as if there were fewer of them. The source of the first is Conover, Practical Nonparametric
Statistics, section 3.2; of the second, the variance of a mean of an autoregressive series.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import comb, floor, sqrt

__all__ = ["CONFIDENCE", "Interval", "median_interval"]

CONFIDENCE = 0.95
"""How often an interval holds the true median, at least."""
_MOST_DEPENDENT = 0.9


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Two samples between which the true median lies with `CONFIDENCE`."""

    low: float
    high: float

    def within(self, middle: float) -> float:
        """Half its width over `middle`: 0.03 reads "plus or minus 3 %"."""
        return (self.high - self.low) / 2 / middle

    def meets(self, other: "Interval") -> bool:
        """Whether the two have a value in common."""
        return self.low <= other.high and other.low <= self.high


def median_interval(samples: Sequence[float]) -> Interval | None:
    """The interval of the median of `samples`, in the order in which they were taken; None where there are too few (of
    independent ones at least 6 are needed) or where they hang together so much that they tell too little."""
    count = len(samples)
    rank = _rank(count)
    if rank < 1:
        return None
    middle = (count + 1) / 2
    widened = floor(middle - (middle - rank) * _widening(samples))
    if widened < 1:
        return None
    ordered = sorted(samples)
    return Interval(low=ordered[widened - 1], high=ordered[count - widened])


@cache
def _rank(count: int) -> int:
    """The largest l for which fewer than l of `count` coins show heads with at most half of what may go wrong."""
    below, rank = 0, 0
    while rank < count:
        below += comb(count, rank)
        if below * round(2 / (1 - CONFIDENCE)) > 2**count:
            break
        rank += 1
    return rank


def _widening(samples: Sequence[float]) -> float:
    """1 for independent samples, more where neighbours lie on the same side of the median."""
    middle = sorted(samples)[len(samples) // 2]
    sides = [(value > middle) - (value < middle) for value in samples]
    power = sum(side * side for side in sides)
    if power == 0:
        return 1.0
    alike = sum(one * other for one, other in zip(sides, sides[1:], strict=False)) / power
    dependent = min(max(alike, 0.0), _MOST_DEPENDENT)
    return sqrt((1 + dependent) / (1 - dependent))
