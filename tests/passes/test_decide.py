"""Constants from samples: what is typical, when an exit lasts, how wide a score spreads."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokcarve.passes.decide import earliest, least_and_most, typical, width


@pytest.mark.parametrize(
    ("values", "quantile", "found"),
    [
        ([1, 2, 6], None, 3.0),
        ([1, 2, 6], 0.5, 2.0),
        ([1, 2, 6], 1.0, 6.0),
        ([0, 10], 0.9, 9.0),  # between two samples, on the line
        ([7], 0.1, 7.0),
    ],
)
def test_what_is_typical(values: list[float], quantile: float | None, found: float) -> None:
    assert typical(values, quantile) == pytest.approx(found)


@pytest.mark.parametrize(
    ("allowed", "first"),
    [("", 0), ("y", 0), ("n", 1), ("ny", 1), ("yn", 2), ("ynyy", 2), ("yyyy", 0), ("yyyn", 4), ("nynyy", 3)],
)
def test_an_exit_must_last(allowed: str, first: int) -> None:
    assert earliest([one == "y" for one in allowed]) == first


def test_least_and_most() -> None:
    assert least_and_most([3, 1, 2]) == [1, 3]


def test_width_by_hand() -> None:
    score = torch.tensor([[1.0, 1, 1, 1], [0, 5, 0, 0], [2, 2, 0, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(width(score), torch.tensor([4.0, 1, 2, 4]))


@given(st.integers(0, 1000), st.floats(0.1, 100))
def test_width_is_a_plain_loops_and_knows_no_scale(seed: int, scale: float) -> None:
    score = torch.rand(2, 9, generator=torch.Generator().manual_seed(seed))
    for row, found in zip(score.tolist(), width(score).tolist(), strict=True):
        shares = [one / sum(row) for one in row]
        assert found == pytest.approx(math.exp(-sum(one * math.log(one) for one in shares if one > 0)), rel=1e-4)
        assert 1 <= found <= 9 + 1e-4
    torch.testing.assert_close(width(scale * score), width(score), rtol=1e-4, atol=0)
