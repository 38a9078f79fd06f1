"""Whether the unpruned model answers well enough for what pruning does to it to mean anything."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokcarve.exporters.evaluation.questions import SCENES, QuestionSet, asked_about
from tokcarve.exporters.evaluation.scores import constant
from tokcarve.passes.checkpoint import WeightsIdentity, resolve, same_weights
from tokcarve.passes.errors import EvaluationError
from tokcarve.recipes.calibration.intervals import redrawn
from tokcarve.tiny import RECORDED

__all__ = ["Gate", "check_floor", "gate_of"]

_ALLOWED = 0.005  # share, below what was recorded
_ERRORS = 3  # standard errors of the questions asked, where they are few


@dataclass(frozen=True, kw_only=True)
class Gate:
    """rule: floor, recorded or constant; `score` of the unpruned model, what was `needed`, and why that."""

    rule: str
    score: float
    needed: float
    passed: bool
    detail: str
    ignored: bool = False

    def record(self) -> dict[str, Any]:
        """These fields as JSON."""
        return asdict(self)

    def insist(self) -> None:
        """Raises EvaluationError where the gate is closed and not ignored."""
        if not self.passed and not self.ignored:
            raise EvaluationError(
                f"the unpruned model does not clear the gate, so no pruned score is reported: {self.detail}; look at "
                "images, questions and prompts, ask more of them, set --floor, or report anyway with --no-gate"
            )


def check_floor(floor: float | None) -> None:
    """EvaluationError for a floor that is no share."""
    if floor is not None and not 0 <= floor <= 1:
        raise EvaluationError(f"--floor {floor:g} is no share of right answers; give one from 0 to 1")


def gate_of(
    asked: QuestionSet,
    hits: NDArray[np.float64],
    weights: WeightsIdentity,
    *,
    floor: float | None,
    ignored: bool,
    seed: int,
) -> Gate:
    """The gate for the soft match `hits` [questions] of the unpruned model with `weights`.

    With a floor, the score must reach it. The bundled model must reach what was recorded of it on the scenes, less half
    a point or three standard errors. Otherwise the score must be above that of the best constant answers, one per
    family, with a 95 % interval of the difference that leaves out zero.
    """
    score = float(hits.mean())
    if floor is not None:
        detail = f"it scores {score:.1%}, and the floor is {floor:.1%}"
        return Gate(rule="floor", score=score, needed=floor, passed=score >= floor, detail=detail, ignored=ignored)
    if asked.source == SCENES and same_weights(resolve("tiny"), weights):
        shares = [RECORDED[one.family] for one in asked.questions]
        expected, slack = float(np.mean(shares)), max(_ALLOWED, _ERRORS * _error(shares))
        needed = expected - slack
        detail = (
            f"it scores {score:.1%}, recorded are {expected:.1%}, and {needed:.1%} would do for {len(shares)} questions"
        )
        return Gate(rule="recorded", score=score, needed=needed, passed=score >= needed, detail=detail, ignored=ignored)
    blind = constant(asked.questions)
    gaps = redrawn(np.stack([hits - blind, np.ones(len(hits))], axis=1), asked.groups, seed)
    low = float(np.quantile(gaps[:, 0] / gaps[:, 1], 0.025))
    passed = low > 0 and max(asked.groups) > 0
    needed = float(blind.mean())
    detail = (
        f"it scores {score:.1%}, and the best constant answers {needed:.1%}, on "
        f"{asked_about(len(hits), max(asked.groups) + 1)}; the difference is {score - needed:+.1%}, 95 % of it above "
        f"{low:+.1%}"
    )
    return Gate(rule="constant", score=score, needed=needed, passed=passed, detail=detail, ignored=ignored)


def _error(shares: Sequence[float]) -> float:
    """The standard error of the mean of as many independent answers."""
    return math.sqrt(sum(one * (1 - one) for one in shares)) / len(shares)
