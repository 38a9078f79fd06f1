import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokcarve.passes.budget import TILE, count_for, count_for_keep, count_for_tokens
from tokcarve.passes.errors import BudgetError


@pytest.mark.parametrize(
    ("keep", "total", "count"),
    [
        (0.11, 576, 64),
        (0.22, 576, 128),
        (0.33, 576, 192),
        (0.1, 80, 8),
        (0.3, 80, 24),
        (0.7, 80, 56),
        (0.1000001, 80, 16),
        (1.0, 576, 576),
        (1, 729, 729),
        (0.999, 729, 729),
        (1e-9, 576, 8),
        (0.5, 3, 3),
    ],
)
def test_a_ratio_is_rounded_up_to_a_tile(keep: float, total: int, count: int) -> None:
    assert count_for_keep(keep, total) == count


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.0000001, 2, float("nan"), float("inf"), float("-inf")])
def test_a_ratio_out_of_range_is_refused(keep: float) -> None:
    with pytest.raises(BudgetError, match=r"is not a share of the 576 visual tokens; choose above 0 and at most 1$"):
        count_for_keep(keep, 576)


@pytest.mark.parametrize("tokens", [0, -1, 577])
def test_a_count_out_of_range_is_refused(tokens: int) -> None:
    with pytest.raises(BudgetError) as refusal:
        count_for_tokens(tokens, 576)
    assert str(refusal.value) == f"tokens={tokens} does not fit the 576 visual tokens of this model; choose 1..576"


def test_one_budget_and_only_one() -> None:
    assert count_for(keep=0.11, total=576) == 64
    assert count_for(tokens=63, total=576) == 63
    with pytest.raises(BudgetError, match="^both keep=0.5 and tokens=64 were given; give one of them$"):
        count_for(keep=0.5, tokens=64, total=576)
    with pytest.raises(BudgetError, match=r"^no budget was given; give keep in \(0, 1\] or tokens in 1\.\.576$"):
        count_for(total=576)


@given(st.integers(1, 10**6), st.integers(1, 5000))
def test_what_a_count_holds(millionths: int, total: int) -> None:
    count = count_for_keep(millionths / 10**6, total)
    assert 1 <= count <= total
    assert count == total or count % TILE == 0
    assert count * 10**6 >= millionths * total
    assert (count - TILE) * 10**6 < millionths * total


@given(st.integers(1, 99), st.integers(1, 500))
def test_a_written_hundredth_that_is_whole_tiles_is_exact(hundredths: int, scale: int) -> None:
    assert count_for_keep(hundredths / 100, 800 * scale) == 8 * hundredths * scale


@given(st.integers(1, 4096), st.integers(1, 4096))
def test_a_count_is_taken_exactly(tokens: int, total: int) -> None:
    if tokens <= total:
        assert count_for_tokens(tokens, total) == tokens
    else:
        with pytest.raises(BudgetError):
            count_for_tokens(tokens, total)


@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(1, 2000))
def test_more_is_never_less(first: int, second: int, total: int) -> None:
    low, high = sorted((first, second))
    assert count_for_keep(low / 1000, total) <= count_for_keep(high / 1000, total)
