"""Counts that share a budget: exact in sum, never rising, within bounds, nearest to what was asked."""

from itertools import pairwise, product

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tokcarve.passes.errors import MethodError
from tokcarve.passes.schedule import apportion

WEIGHTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=6)


def summed(counts: tuple[int, ...], lengths: list[int]) -> int:
    return sum(n * count for n, count in zip(lengths, counts, strict=True))


@pytest.mark.parametrize(
    ("weights", "total", "lengths", "counts"),
    [
        ([4, 2, 1], 70, None, (40, 20, 10)),
        ([4, 2, 1], 71, None, (41, 20, 10)),  # 40.57, 20.29, 10.14: the largest remainder
        ([4, 2, 1], 72, None, (41, 21, 10)),  # 41.14, 20.57, 10.29
        ([1, 1, 1], 31, None, (11, 10, 10)),  # a tie goes to the first
        ([1, 4, 4], 31, None, (11, 10, 10)),  # never rises
        ([9, 1, 1], 90, None, (50, 20, 20)),  # most is 50, and the rest is shared
        ([9, 9, 1], 45, None, (20, 20, 5)),  # least is 5
        ([4, 2, 1], 110, [2, 1, 1], (40, 20, 10)),
        ([1, 1, 1], 41, [2, 1, 1], (11, 10, 9)),  # one over, and only two at once can be had
    ],
)
def test_by_hand(weights: list[float], total: int, lengths: list[int] | None, counts: tuple[int, ...]) -> None:
    assert apportion(weights, total, least=5, most=50, lengths=lengths) == counts


@given(WEIGHTS, st.integers(1, 20), st.integers(0, 60), st.data())
def test_sum_order_and_bounds(weights: list[float], least: int, width: int, data: st.DataObject) -> None:
    most, parts = least + width, len(weights)
    total = data.draw(st.integers(parts * least, parts * most))
    counts = apportion(weights, total, least=least, most=most)
    assert sum(counts) == total
    assert all(before >= after for before, after in pairwise(counts))
    assert all(least <= count <= most for count in counts)
    assert apportion([7 * one for one in weights], total, least=least, most=most) == counts or width > 0


@given(WEIGHTS, st.data())
def test_layers_of_different_numbers(weights: list[float], data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(1, 8), min_size=len(weights), max_size=len(weights)))
    wanted = sorted(data.draw(st.lists(st.integers(3, 90), min_size=len(weights), max_size=len(weights))), reverse=True)
    total = summed(tuple(wanted), lengths)
    counts = apportion(weights, total, least=3, most=90, lengths=lengths)
    assert summed(counts, lengths) == total
    assert all(before >= after for before, after in pairwise((90, *counts, 3)))


@given(st.lists(st.integers(1, 9), min_size=2, max_size=3), st.integers(0, 24))
def test_nothing_is_nearer(weights: list[int], more: int) -> None:
    """Of all counts of that sum, none is nearer, by squares, to the shares themselves, where these need no bounds."""
    falling = [min(weights[: i + 1]) for i in range(len(weights))]
    total = len(weights) + more
    ideal = [total * one / sum(falling) for one in falling]
    assume(min(ideal) >= 1 and max(ideal) <= 30)
    found = apportion(weights, total, least=1, most=30)

    def far(counts: tuple[int, ...]) -> float:
        return sum((count - one) ** 2 for count, one in zip(counts, ideal, strict=True))

    every = (one for one in product(range(1, 31), repeat=len(weights)) if sum(one) == total)
    assert far(found) == pytest.approx(min(far(one) for one in every))


@pytest.mark.parametrize("total", range(40, 70))
def test_nothing_is_nearer_by_layers(total: int) -> None:
    """Squares count once per layer; 3 and 2 layers and 1, whose exact shares are 10, 8 and 4 of a sum of 50."""
    lengths, falling = [3, 2, 1], [10, 8, 4]
    ideal = [total * one / 50 for one in falling]
    found = apportion(falling, total, least=1, most=30, lengths=lengths)

    def far(counts: tuple[int, ...]) -> float:
        return sum(n * (count - one) ** 2 for n, count, one in zip(lengths, counts, ideal, strict=True))

    every = (one for one in product(range(1, 31), repeat=3) if one[0] >= one[1] >= one[2])
    assert far(found) == pytest.approx(min(far(one) for one in every if summed(one, lengths) == total))


@pytest.mark.parametrize(("total", "lengths"), [(2, None), (91, None), (7, [2, 2, 2])])
def test_what_cannot_be_shared_is_refused(total: int, lengths: list[int] | None) -> None:
    with pytest.raises(MethodError, match=rf"no counts of 1\.\.30 sum to {total}"):
        apportion([1, 1, 1], total, least=1, most=30, lengths=lengths)
