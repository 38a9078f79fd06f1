"""The gate: open for a model that sees, closed for one that guesses, in each of its rules."""

from dataclasses import replace

import numpy as np
import pytest

from tokcarve.exporters.evaluation.gate import Gate, check_floor, gate_of
from tokcarve.exporters.evaluation.questions import QuestionSet, open_questions
from tokcarve.passes.checkpoint import WeightsIdentity, resolve, weights_identity
from tokcarve.passes.errors import EvaluationError
from tokcarve.tiny import FAMILIES, RECORDED

OTHER = WeightsIdentity(identity="0" * 64, files=())


@pytest.fixture(scope="module")
def scenes() -> QuestionSet:
    return open_questions(None, 120)


def gate(asked: QuestionSet, share: float, weights: WeightsIdentity = OTHER, **settings: object) -> Gate:
    """The gate of a model that answers a share right, evenly."""
    count = len(asked.questions)
    hits = (np.arange(count) * share % 1 + share >= 1).astype(float)
    return gate_of(asked, hits, weights, **{"floor": None, "ignored": False, "seed": 0, **settings})  # type: ignore[arg-type]


def test_constant_answers_do_not_pass_and_seeing_does(scenes: QuestionSet) -> None:
    blind = gate(scenes, 0.32)
    assert blind.rule == "constant" and not blind.passed
    with pytest.raises(EvaluationError, match=r"does not clear the gate, .*best constant answers .*--no-gate"):
        blind.insist()
    assert gate(scenes, 0.8).passed


def test_too_few_questions_prove_nothing(scenes: QuestionSet) -> None:
    assert not gate(replace(scenes, questions=scenes.questions[:4]), 1.0).passed, "all of one picture"


def test_a_floor_takes_the_place_of_everything_else(scenes: QuestionSet) -> None:
    assert gate(scenes, 0.5, floor=0.5).passed and not gate(scenes, 0.45, floor=0.5).passed
    assert gate(scenes, 0.5, floor=0.5).rule == "floor"
    check_floor(1.0)
    for wrong in (-0.1, 50.0):
        with pytest.raises(EvaluationError, match="is no share of right answers"):
            check_floor(wrong)


def test_the_bundled_model_must_do_what_was_recorded_of_it(scenes: QuestionSet) -> None:
    own = weights_identity(resolve("tiny"))
    expected = np.mean([RECORDED[one.family] for one in scenes.questions])
    found = gate(scenes, float(expected), own)
    assert found.rule == "recorded" and found.passed and found.needed < expected
    assert not gate(scenes, float(expected) - 0.12, own).passed, "as far below as pruning takes it"
    assert gate(scenes, 0.8, own).rule == "recorded" and not gate(scenes, 0.8, own).passed


def test_an_ignored_gate_says_so_and_does_not_stand_in_the_way(scenes: QuestionSet) -> None:
    found = gate(scenes, 0.1, ignored=True)
    found.insist()
    assert found.record()["passed"] is False and found.record()["ignored"] is True


def test_every_family_has_a_record() -> None:
    assert set(RECORDED) == set(FAMILIES)
