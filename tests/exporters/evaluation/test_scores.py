"""Scores by hand: soft match, POPE, both means, loyalty, divergence, and what pairing does to an interval."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import pytest
from PIL import Image

from tokcarve.exporters.evaluation.questions import Question
from tokcarve.exporters.evaluation.scores import Answer, constant, exact, measures, soft
from tokcarve.exporters.evaluation.speaking import divergence


def question(answers: Sequence[str] | str, family: str = "", text: str = "what?", kind: str = "") -> Question:
    given = (answers,) if isinstance(answers, str) else tuple(answers)
    image = partial(Image.new, "RGB", (1, 1))
    return Question(id="1", text=text, answers=given, family=family, kind=kind, picture="a", open=image)


def answer(text: str, same: bool = True, kl: tuple[float, ...] = (0.0,)) -> Answer:
    return Answer(tokens=(1,), text=text, same=same, kl=kl)


@pytest.mark.parametrize(("agreeing", "score"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_soft_match_leaves_each_annotator_out_in_turn(agreeing: int, score: float) -> None:
    # 3 agree: 3 of the 10 leave one of them out (2/3), 7 leave another out (1): (3 * 2/3 + 7) / 10 = 0.9
    answers = ["cat"] * agreeing + ["dog"] * (10 - agreeing)
    assert soft("The cat", answers) == pytest.approx(score)


def test_other_numbers_of_answers_are_right_or_wrong() -> None:
    assert soft("Two", ["2"]) == exact("tv", ["television", "TV"]) == soft("tv", ["television", "TV"]) == 1
    assert soft("3", ["2"]) == exact("radio", ["television", "TV"]) == 0


def test_pope_by_hand() -> None:
    truths = ["yes", "yes", "yes", "no", "no", "blue"]
    said = ["Yes.", "no", "maybe", "yes", "No", "yes"]
    found = measures([question(one) for one in truths], [0] * 6, [[answer(one) for one in said]]).values()
    assert found["pope accuracy"] == pytest.approx(2 / 5)
    assert found["pope precision"] == pytest.approx(1 / 2)
    assert found["pope recall"] == pytest.approx(1 / 3)
    assert found["pope f1"] == pytest.approx(2 * (1 / 2) * (1 / 3) / (1 / 2 + 1 / 3))
    assert found["pope yes_ratio"] == pytest.approx(2 / 5)
    assert found["pope unclear"] == pytest.approx(1 / 5)


def test_hallucination_is_about_what_is_absent_alone() -> None:
    asked = [
        question("no", "existence"),
        question("no", "existence"),
        question("yes", "existence"),
        question("no", "comparison"),
        question("no", text="Is there a dog?"),
        question("no", text="is it red?"),
        question("no", kind="existence", text="any dog?"),
    ]
    said = ["yes", "no", "yes", "yes", "yes", "yes", "no"]
    found = measures(asked, [0] * 7, [[answer(one) for one in said]]).values()
    assert found["hallucination"] == pytest.approx(2 / 4)
    assert measures(asked[5:6], [0], [[answer("yes")]]).values()["hallucination"] is None


def test_both_means_places_and_families() -> None:
    asked = [question("left", "place"), question("1", "count"), question("2", "count"), question("3", "count")]
    found = measures(asked, [0] * 4, [[answer(one) for one in ("left", "1", "9", "9")]]).values()
    assert found["score"] == pytest.approx(2 / 4) and found["macro"] == pytest.approx((1 + 1 / 3) / 2)
    assert found["localisation"] == 1 and found["family count"] == pytest.approx(1 / 3)
    assert measures([question("x", kind="localisation")], [0], [[answer("x")]]).values()["localisation"] == 1


def test_loyalty_and_divergence_are_means_over_answers_and_over_tokens() -> None:
    run = [answer("a", kl=(1.0, 2.0, 3.0)), answer("b", same=False, kl=(0.0,))]
    found = measures([question("a"), question("a")], [0, 1], [run]).values()
    assert found["loyalty"] == 0.5 and found["kl"] == 1.5 and found["kl_first"] == 0.5


def test_several_runs_count_by_their_mean() -> None:
    runs = [[answer("a")], [answer("b", same=False)]]
    found = measures([question("a")], [0], runs).values()
    assert found["score"] == 0.5 and found["loyalty"] == 0.5


def test_divergence_by_hand() -> None:
    full, other = (np.log(np.array(one, np.float32)) for one in ([[0.5, 0.5], [0.9, 0.1]], [[0.25, 0.75], [0.9, 0.1]]))
    other += 7
    first = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    assert divergence(full, other) == pytest.approx([first, 0.0], abs=1e-6)
    assert divergence(other, full) != pytest.approx([first, 0.0], abs=1e-3), "it has a direction"


def test_the_best_constant_is_sought_in_each_family() -> None:
    asked = [question(one, "a") for one in ("yes", "no", "no")] + [question("red", "b")]
    assert constant(asked).tolist() == [0, 1, 1, 1]


def sides(gain: float, seed: int = 0) -> tuple[list[Question], list[int], list[list[Answer]]]:
    """240 questions about 60 pictures, of which the second side answers `gain` more right."""
    rng = np.random.RandomState(seed)
    hard = np.repeat(rng.rand(60) < 0.5, 4)
    asked, groups = [question("yes", "existence") for _ in range(240)], np.repeat(np.arange(60), 4).tolist()
    first = ["yes" if one else "no" for one in hard]
    second = ["yes" if one or rng.rand() < gain else "no" for one in hard]
    return asked, groups, [[answer(one) for one in run] for run in (first, second)]


def test_a_difference_is_seen_where_there_is_one_and_not_where_there_is_none() -> None:
    asked, groups, (first, second) = sides(0.3)
    better, worse = (measures(asked, groups, [run]) for run in (second, first))
    gap, low, high = better.less(worse, 0)["score"]
    assert gap == pytest.approx(better.values()["score"] - worse.values()["score"]) and 0 < low < gap < high
    assert better.less(better, 0)["score"] == [0, 0, 0]
    assert worse.less(better, 0)["pope f1"][2] < 0
    assert better.less(worse, 0) == better.less(worse, 0) != better.less(worse, 1)


def test_questions_of_a_picture_are_drawn_together() -> None:
    asked, groups, (first, second) = sides(0.3)
    gap = measures(asked, groups, [second]).less(measures(asked, groups, [first]), 0)["score"]
    alone = list(range(240))
    wide = measures(asked, groups, [first])
    narrow = measures(asked, alone, [first])
    none = [answer("no")] * 240
    # within a picture the first side is all right or all wrong, so 240 answers are worth 60
    low, high = wide.less(measures(asked, groups, [none]), 0)["score"][1:]
    low_alone, high_alone = narrow.less(measures(asked, alone, [none]), 0)["score"][1:]
    assert (high - low) > 1.7 * (high_alone - low_alone) and gap is not None


def test_one_picture_has_no_interval_and_no_question_no_value() -> None:
    one = measures([question("a"), question("b")], [0, 0], [[answer("a"), answer("a")]])
    found = one.less(one, 0)
    assert found["score"] == [0, None, None] and found["pope f1"] is None
