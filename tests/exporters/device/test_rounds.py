"""Rounds: their order, when they stop and why, and that two measurements of one thing agree within their intervals."""

import random
from collections.abc import Mapping
from itertools import count

import pytest

from tokcarve.exporters.device.rounds import Effort, Samples, Way, ratios, settled, take_rounds, timed
from tokcarve.exporters.device.timing import distribution
from tokcarve.passes.errors import ExportError


def noisy(name: str, milliseconds: float, spread: float, seed: int) -> Way:
    """A way that says `milliseconds` with some noise, and takes no time itself."""
    rng = random.Random(seed)
    return lambda _: {name: milliseconds * rng.lognormvariate(0, spread)}


def pair(name: str, seed: int, spread: float = 0.05) -> tuple[Way, Way]:
    return noisy(name, 10, spread, seed), noisy(name, 25, spread, seed + 1)


def test_sides_take_turns_and_warm_up_is_forgotten() -> None:
    calls, told = list[str](), list[tuple[int, int]]()

    def way(side: str) -> Way:
        def run(turn: int) -> Mapping[str, float]:
            calls.append(f"{side}{turn}")
            return {"one": float(turn), "other": 10.0 * turn}

        return run

    taken = take_rounds(
        [(way("p"), way("u"))], Effort(repeats=2, warm_up=1), tick=lambda *done: told.append(done)
    )  # fmt: skip
    assert calls == ["p0", "u0", "u1", "p1", "p2", "u2"] and told == [(1, 3), (2, 3), (3, 3)]
    assert taken.samples == {"one": ([1.0, 2.0], [1.0, 2.0]), "other": ([10.0, 20.0], [10.0, 20.0])}
    assert (taken.rounds, taken.stopped) == (2, "asked")


def test_it_goes_on_until_medians_and_ratio_are_tight() -> None:
    effort = Effort(tolerance=0.03)
    taken = take_rounds([pair("prefill", 3)], effort)
    assert taken.stopped == "tight" and effort.least <= taken.rounds < effort.most
    pruned, unpruned = taken.samples["prefill"]
    assert all(settled(distribution(one), 0.03) for one in (pruned, unpruned, ratios((pruned, unpruned))))
    early = [values[: taken.rounds - 1] for values in (pruned, unpruned)]
    before: Samples = (early[0], early[1])
    loose = [not settled(distribution(one), 0.03) for one in (*before, ratios(before))]
    assert taken.rounds == effort.least or any(loose)


def test_steadier_ways_take_fewer_rounds() -> None:
    rounds = [take_rounds([pair("prefill", 5, spread)], Effort()).rounds for spread in (0.001, 0.1)]
    assert rounds[0] < 20 < 50 < rounds[1]


def test_noise_ends_at_the_bound_or_at_the_time() -> None:
    wild = [pair("prefill", 3, 1.0)]
    most = take_rounds(wild, Effort(most=30))
    assert (most.rounds, most.stopped) == (30, "most")
    short = take_rounds(wild, Effort(seconds=1e-9))
    assert (short.rounds, short.stopped) == (Effort().least, "time")


def test_what_is_not_watched_is_not_waited_for() -> None:
    pairs = [pair("prefill", 3, 0.001), pair("cache", 4, 1.0)]
    taken = take_rounds(pairs, Effort(), watched=lambda name: name != "cache")
    assert taken.stopped == "tight" and len(taken.samples["cache"][0]) == taken.rounds


def test_two_measurements_agree_within_their_intervals_and_others_do_not() -> None:
    seeds = count(10, 10)
    agreed, apart = 0, 0
    for _ in range(20):
        one, other, slower = (take_rounds([pair("prefill", next(seeds))], Effort()) for _ in range(3))
        intervals = [distribution(ratios(taken.samples["prefill"])).interval for taken in (one, other)]
        changed = [(value, 1.15 * unpruned) for value, unpruned in zip(*slower.samples["prefill"], strict=True)]
        intervals.append(distribution([unpruned / pruned for pruned, unpruned in changed]).interval)
        first, second, third = intervals
        assert first is not None and second is not None and third is not None
        agreed += first.meets(second)
        apart += not first.meets(third)
    assert agreed >= 19 and apart >= 19


def test_a_way_times_itself() -> None:
    (name, spent), *more = timed("prefill", lambda turn: sum(range(1000 * turn)))(3).items()
    assert name == "prefill" and spent > 0 and not more


@pytest.mark.parametrize(
    ("effort", "message"),
    [
        (Effort(repeats=0), "repeats=0 with warm-up 3 measures nothing"),
        (Effort(warm_up=-1), "warm-up -1 measures nothing"),
        (Effort(tolerance=0.0), "tolerance=0 is no share"),
        (Effort(tolerance=1.5), "tolerance=1.5 is no share"),
        (Effort(seconds=0.0), "seconds=0 is no time"),
    ],
)
def test_numbers_that_measure_nothing_are_refused(effort: Effort, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        effort.checked()
