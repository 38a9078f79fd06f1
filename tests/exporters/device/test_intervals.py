"""Intervals of medians: by hand, by how often they hold the truth, and where they must say nothing."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokcarve.exporters.device.intervals import Interval, median_interval


@pytest.mark.parametrize(("count", "rank"), [(6, 1), (8, 1), (9, 2), (10, 2), (20, 6), (100, 40)])
def test_ranks_are_those_of_the_tables(count: int, rank: int) -> None:
    # alternating sides, so that no neighbours look alike: 0, -1, 1, -2, 2, ...
    samples = [float((-1) ** place * place) for place in range(count)]
    ordered = sorted(samples)
    assert median_interval(samples) == Interval(low=ordered[rank - 1], high=ordered[count - rank])


def test_few_samples_tell_nothing() -> None:
    assert median_interval([1.0, 2.0, 1.0, 2.0, 1.0]) is None


def test_a_drift_is_no_repetition() -> None:
    rising = [float(place) for place in range(20)]
    shuffled = random.Random(1).sample(rising, 20)
    narrow = median_interval(shuffled)
    assert median_interval(rising) is None and narrow is not None
    half = median_interval([*shuffled[:10], *(value + 12 for value in shuffled[10:])])
    assert half is None or half.high - half.low > narrow.high - narrow.low


def test_ninety_five_of_a_hundred_hold_the_truth() -> None:
    rng = random.Random(0)
    held = []
    for _ in range(400):
        found = median_interval([rng.lognormvariate(0, 0.5) for _ in range(20)])
        held.append(found is None or found.low <= 1 <= found.high)
    assert sum(held) / len(held) >= 0.94
    missed = median_interval([rng.lognormvariate(1, 0.5) for _ in range(20)])
    assert missed is not None and not missed.low <= 1 <= missed.high


@given(st.lists(st.floats(0.1, 100), max_size=60))
def test_an_interval_holds_the_middle_sample(samples: list[float]) -> None:
    found = median_interval(samples)
    if found is not None:
        assert found.low <= sorted(samples)[len(samples) // 2] <= found.high


def test_width_and_meeting() -> None:
    assert Interval(low=97.0, high=103.0).within(100.0) == pytest.approx(0.03)
    assert Interval(low=1.0, high=2.0).meets(Interval(low=2.0, high=3.0))
    assert not Interval(low=1.0, high=2.0).meets(Interval(low=2.1, high=3.0))
