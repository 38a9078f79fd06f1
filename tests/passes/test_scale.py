"""One scale for all thresholds: found by counting, in few rounds, whatever the counts look like."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokcarve.passes.methods import METHODS
from tokcarve.passes.scale import ROUNDS, Scale
from tokcarve.passes.stage import Look, Method

SITE = "vision.layers.3"
FORM: Any = METHODS["as_vit"]


def searching(tokens: int) -> Scale:
    return Scale(SITE, tokens, lambda scale: FORM(form="threshold", scale=scale), lambda scale: FORM(scale=scale))


def found(tokens: int, passing: list[Callable[[float], int]]) -> tuple[list[float], Method, dict[str, Any]]:
    """The scales tried on samples that let as many pass as their functions say, the method, and the spread."""
    decision, looks, tried = searching(tokens), [Look() for _ in passing], list[float]()
    while (form := decision.counting(looks)) is not None:
        assert isinstance(form, FORM) and form.form == "threshold"
        scale: float = form.scale
        tried.append(scale)
        made = [{"counts": {}, "passing": {SITE: sample(scale)}} for sample in passing]
        looks = [Look(counted=[*look.counted, one]) for look, one in zip(looks, made, strict=True)]
    return tried, *decision.settle(looks)


def test_by_hand() -> None:
    # two samples, 100 / scale and 60 / scale tokens: a mean of 80 at 1, 40 at 2, and 20 at 4
    passing = [lambda scale: round(100 / scale), lambda scale: round(60 / scale)]
    tried, method, spread = found(40, passing)
    assert tried == [1.0, 2.0] and method == FORM(scale=2.0) and spread == {"passing": [30, 50]}
    assert found(80, passing)[0] == [1.0]
    assert found(160, passing)[:2] == ([1.0, 0.5], FORM(scale=0.5))
    # between 1 (80) and 2 (40), half way on the logarithm of the scale
    tried, *_ = found(60, passing)
    assert tried[:3] == [1.0, 2.0, 1.41421]


@given(
    st.integers(1, 575),
    st.lists(st.tuples(st.floats(0.05, 20), st.floats(0.3, 4)), min_size=1, max_size=6),
)
def test_counts_that_fall_smoothly_are_met(tokens: int, curves: list[tuple[float, float]]) -> None:
    def falling(at: float, steep: float) -> Callable[[float], int]:
        return lambda scale: round(576 / (1 + (scale / at) ** steep))

    passing = list(itertools.starmap(falling, curves))
    tried, method, spread = found(tokens, passing)
    assert isinstance(method, FORM)
    counts = [one(method.scale) for one in passing]
    # many samples miss by less than one token; one can only be met where its steps are
    assert abs(sum(counts) / len(counts) - tokens) < 1 and len(tried) <= ROUNDS
    assert spread == {"passing": [min(counts), max(counts)]}
    assert len(set(tried)) == len(tried)


@pytest.mark.parametrize(("low", "high"), [(576, 0), (500, 60), (65, 20)])
def test_a_step_that_skips_what_was_asked_takes_the_nearer_side(low: int, high: int) -> None:
    tried, method, _ = found(64, [lambda scale: low if scale < 0.37 else high])
    assert len(tried) == ROUNDS and isinstance(method, FORM)
    assert (method.scale < 0.37) == (low - 64 < 64 - high)


def test_counts_that_no_scale_changes_end_the_search() -> None:
    tried, method, _ = found(64, [lambda scale: 3])
    assert len(tried) == ROUNDS and method == FORM(scale=1.0)


def test_a_quantile_does_not_settle_it() -> None:
    assert not Scale.by_quantile
