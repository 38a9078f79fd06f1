"""Intervals: Wilson's by its published values, the bootstrap by what it must hold to."""

import math

import numpy as np
import pytest

from tokcarve.recipes.calibration.intervals import paired, redrawn, share


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)],
)
def test_wilson(hits: int, count: int, low: float, high: float) -> None:
    found = share([1.0] * hits + [0.0] * (count - hits))
    assert found == pytest.approx([hits / count, low, high], abs=1e-4)


def test_equal_values_differ_by_nothing_and_a_constant_by_itself() -> None:
    values = [0.1, 0.7, 0.4, 0.9]
    assert paired(values, values) == [0, 0, 0]
    assert paired([one + 2 for one in values], values) == pytest.approx([2, 2, 2])


def test_it_is_paired_seeded_and_turns_round() -> None:
    rng = np.random.RandomState(1)
    base = 10 * rng.randn(200)
    first, second = ((base + 0.1 * rng.randn(200) + shift).tolist() for shift in (0.05, 0.0))
    gap, low, high = paired(first, second)
    assert low < gap < high and high - low < 0.1, "what both samples share does not count"
    assert paired(first, second) == [gap, low, high] != paired(first, second, seed=1)
    assert paired(second, first) == pytest.approx([-gap, -high, -low], abs=1e-3)


def test_it_covers_as_often_as_it_says() -> None:
    rng = np.random.RandomState(2)
    held = 0
    for seed in range(200):
        gaps = rng.randn(60) + 0.3
        _, low, high = paired(gaps.tolist(), [0.0] * 60, seed)
        held += low <= 0.3 <= high
    assert 180 <= held < 200


def test_its_width_is_that_of_the_mean() -> None:
    gaps = np.random.RandomState(3).randn(400)
    _, low, high = paired(gaps.tolist(), [0.0] * 400)
    assert high - low == pytest.approx(2 * 1.96 * gaps.std() / math.sqrt(400), rel=0.1)


def test_groups_are_drawn_as_a_whole() -> None:
    values, groups = np.array([[1.0], [2.0], [10.0], [20.0]]), [0, 0, 1, 1]
    drawn = set(redrawn(values, groups)[:, 0].tolist())
    assert drawn == {6.0, 33.0, 60.0}, "two groups: the first twice, each once, the second twice"
    assert np.array_equal(redrawn(values, groups, 3), redrawn(values, groups, 3))
