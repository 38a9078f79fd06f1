"""Rows of points by hand: scores, costs, the front and the verdict."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tokcarve.exporters.evaluation.questions import Question, QuestionSet
from tokcarve.exporters.sweeping.table import Point, front, rows_of_points

CONTROLS = ("random", "uniform")
TRUTH = ["red", "two", "yes", "no"] * 10


def questions() -> QuestionSet:
    made = tuple(
        Question(
            id=str(number),
            text="what is it?",
            answers=(answer,),
            family="colour" if number % 2 else "shape",
            kind="",
            picture=str(number),
            open=lambda: Image.new("RGB", (2, 2)),
        )
        for number, answer in enumerate(TRUTH)
    )
    return QuestionSet(source="by hand", sha256="0", questions=made, unanswerable=())


def point(method: str, tokens: int, right: int, flops: int, *, runs: int = 1) -> Point:
    """A point whose first `right` answers are right."""
    said: list[dict[str, Any]] = [
        {"tokens": [7, 2], "text": truth if number < right else "blue", "same": number < right, "kl": [0.5, 0.0]}
        for number, truth in enumerate(TRUTH)
    ]
    record = {
        "method": method,
        "tokens": tokens,
        "numbers": {"tokens_entering": tokens, "tokens_mean": tokens / 2, "kv_mib": 0.25},
        "flops": {"encoder": 100, "prefill": flops},
        "runs": [said] * runs,
    }
    return Point(record=record, measured=None)


def test_rows_by_hand() -> None:
    points = [
        point("none", 16, 40, 100),
        point("good", 4, 36, 50),
        point("bad", 4, 4, 60),
        point("random", 4, 12, 50, runs=3),
        point("uniform", 4, 20, 50),
    ]
    plain, good, bad, random, uniform = rows_of_points(points, questions(), CONTROLS)
    assert (plain.score, plain.cost, plain.against_control, plain.verdict, plain.front) == (1.0, 1.0, None, "", True)
    assert (good.score, good.loyalty, good.cost, good.prefill, good.encoder) == (0.9, 0.9, 0.75, 0.5, 1.0)
    assert (good.entering, good.mean, good.kv_mib) == (4, 2, 0.25) and good.kl == pytest.approx(0.25)
    assert good.control == "uniform" and good.against_control and good.against_control[0] == pytest.approx(0.4)
    assert good.verdict == "better" and bad.verdict == "worse"
    assert good.against_unpruned and good.against_unpruned[0] == pytest.approx(-0.1)
    assert [row.front for row in (good, bad, random, uniform)] == [True, False, False, False]
    assert random.is_control and random.verdict == "" and uniform.against_control is None
    assert good.families == {"shape": 0.9, "colour": 0.9} and good.macro == pytest.approx(0.9)


def test_an_interval_that_holds_zero_is_unclear() -> None:
    points = [point("none", 16, 40, 100), point("near", 4, 21, 50), point("uniform", 4, 20, 50)]
    wide = rows_of_points(points, questions(), CONTROLS)[1]
    assert wide.verdict == "unclear" and wide.against_control
    assert (wide.against_control[1] or 0) <= 0 <= (wide.against_control[2] or 0)


def test_the_best_control_is_that_of_the_same_count() -> None:
    points = [
        point("none", 16, 40, 100),
        point("a", 4, 20, 50),
        point("a", 8, 30, 60),
        point("random", 4, 10, 50),
        point("uniform", 4, 5, 50),
        point("random", 8, 10, 60),
        point("uniform", 8, 25, 60),
    ]
    rows = rows_of_points(points, questions(), CONTROLS)
    assert [rows[i].control for i in (1, 2)] == ["random", "uniform"]


def test_the_front_by_hand() -> None:
    assert front([1, 2, 3, 2], [0.5, 0.9, 0.9, 0.8]) == [True, True, False, False]
    assert front([1, 1], [0.5, 0.5]) == [True, True]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=9))
@settings(max_examples=30)
def test_every_point_off_the_front_is_beaten_by_one_on_it(pairs: list[tuple[int, int]]) -> None:
    costs, scores = zip(*pairs, strict=True)
    found = front(costs, scores)
    assert any(found)
    for (cost, score), on in zip(pairs, found, strict=True):
        better = any(
            f and c <= cost and s >= score and (c, s) != (cost, score) for (c, s), f in zip(pairs, found, strict=True)
        )
        assert on != better
