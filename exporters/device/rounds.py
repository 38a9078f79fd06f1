"""Rounds of measuring: all ways in turn, pruned beside unpruned, until the medians are known well enough.

A way does its work, times it itself and says what it found, in milliseconds by name: one step of a stage, or the times
at which several tokens of one answer were there. Both sides of one thing run next to each other, in changing order, so
that a machine that slows down slows both; what is gained is therefore the median of the ratios of the rounds, and its
interval is narrower than those of the milliseconds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter

from tokcarve.exporters.device.timing import Distribution, distribution
from tokcarve.passes.errors import ExportError

__all__ = ["Effort", "Samples", "Taken", "Way", "ratios", "settled", "take_rounds", "timed"]

Way = Callable[[int], Mapping[str, float]]
Samples = tuple[list[float], list[float]]
"""Milliseconds of the pruned and of the unpruned side, one per round."""


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long to measure: `repeats` rounds, or where that is None until all intervals are within `tolerance` (0.03 is
    plus or minus 3 % of the median), for `least` to `most` rounds and not much longer than `seconds`. `warm_up` rounds
    before that are not counted."""

    repeats: int | None = None
    warm_up: int = 3
    tolerance: float = 0.03
    least: int = 10
    most: int = 200
    seconds: float = 60.0

    def checked(self) -> "Effort":
        """Itself; ExportError for numbers that measure nothing."""
        if self.warm_up < 0 or (self.repeats is not None and self.repeats < 1):
            raise ExportError(
                f"repeats={self.repeats} with warm-up {self.warm_up} measures nothing; give at least 1 and 0, or "
                "repeats=auto"
            )
        if not 0 < self.tolerance < 1:
            raise ExportError(
                f"tolerance={self.tolerance:g} is no share of a median; give one between 0 and 1, as 0.03"
            )
        if not 0 < self.seconds < float("inf"):
            raise ExportError(f"seconds={self.seconds:g} is no time to measure in; give more than 0")
        return self

    @property
    def bound(self) -> int:
        """The most rounds there may be, those to warm up included."""
        return self.warm_up + (self.most if self.repeats is None else self.repeats)


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What rounds came to: `samples` by name, how many `rounds` were counted, and why they `stopped`: "tight", "most",
    "time", or "asked" where their number was given."""

    samples: Mapping[str, Samples]
    rounds: int
    stopped: str


def timed(name: str, work: Callable[[int], object]) -> Way:
    """`work` as a way that gives its own milliseconds as `name`."""

    def way(turn: int) -> Mapping[str, float]:
        started = perf_counter()
        work(turn)
        return {name: (perf_counter() - started) * 1000}

    return way


def take_rounds(
    pairs: Sequence[tuple[Way, Way]],
    effort: Effort,
    *,
    watched: Callable[[str], bool] = lambda _: True,
    tick: Callable[[int, int], None] = lambda done, total: None,
) -> Taken:
    """Runs all `pairs` (pruned, unpruned) round by round, as long as `effort` has it.

    Names that are not `watched` are measured, and not waited for. `tick(done, bound)` follows every round; at the last
    one both are equal.
    """
    samples: dict[str, Samples] = {}
    started, stopped = perf_counter(), ""
    for turn in range(effort.bound):
        for pair in pairs:
            for place in (0, 1):
                side = (turn + place) % 2
                for name, spent in pair[side](turn).items():
                    samples.setdefault(name, ([], []))[side].append(spent)
        done = turn + 1
        if done == effort.warm_up:
            samples.clear()
        elif done > effort.warm_up:
            waited = {name: pair for name, pair in samples.items() if watched(name)}
            stopped = _why_stop(done - effort.warm_up, waited, effort, perf_counter() - started)
        tick(done, done if stopped else effort.bound)
        if stopped:
            break
    return Taken(samples=samples, rounds=done - effort.warm_up, stopped=stopped)


def _why_stop(rounds: int, samples: Mapping[str, Samples], effort: Effort, seconds: float) -> str:
    if effort.repeats is not None:
        return "asked" if rounds == effort.repeats else ""
    if rounds < effort.least:
        return ""
    if all(settled(three, effort.tolerance) for pair in samples.values() for three in _three(pair)):
        return "tight"
    if rounds >= effort.most:
        return "most"
    return "time" if seconds > effort.seconds else ""


def _three(pair: Samples) -> tuple[Distribution, Distribution, Distribution]:
    return distribution(pair[0]), distribution(pair[1]), distribution(ratios(pair))


def ratios(pair: Samples) -> list[float]:
    """Unpruned over pruned, round by round: above 1 is a gain."""
    return [unpruned / pruned for pruned, unpruned in zip(*pair, strict=True)]


def settled(one: Distribution, tolerance: float) -> bool:
    """Whether the median is known to within `tolerance` of itself."""
    return one.interval is not None and one.interval.within(one.p50) <= tolerance
