"""Ridge regression in float64, closed form, and what it says of samples that it was not shown.

Few samples and many features: what is solved has one row per sample.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["PENALTIES", "Line", "error", "left_out", "ridge"]

Array = NDArray[np.float64]

PENALTIES = tuple(10.0 ** (power / 2) for power in range(-2, 7))
"""Of standardised features, all of which together weigh one; the last penalty leaves little but the mean."""

FOLDS = 8


@dataclass(frozen=True, kw_only=True)
class Line:
    """weight [features, outputs], bias [outputs]."""

    weight: Array
    bias: Array

    def __call__(self, features: Array) -> Array:
        """The outputs [samples, outputs] of features [samples, features]."""
        made: Array = features @ self.weight + self.bias
        return made


def ridge(features: Array, wanted: Array, penalty: float) -> Line:
    """The line through samples [samples, features] -> [samples, outputs]; constant features have no say."""
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    scale = np.where(deviation > 1e-9 * (1 + np.abs(mean)), deviation, np.inf)
    rows, count = (features - mean) / scale, features.shape[1]
    level = wanted.mean(axis=0)
    inner = rows @ rows.T / count + penalty * np.eye(len(rows))
    weight = rows.T @ np.linalg.solve(inner, wanted - level) / count / scale[:, None]
    return Line(weight=weight, bias=level - mean @ weight)


def left_out(features: Array, wanted: Array, penalty: float) -> Array:
    """What every sample is given by the line through the folds that it is not in; a fold takes every eighth sample."""
    fold, made = np.arange(len(features)) % min(FOLDS, len(features)), np.empty_like(wanted)
    for one in range(fold.max() + 1):
        inside = fold == one
        made[inside] = ridge(features[~inside], wanted[~inside], penalty)(features[inside])
    return made


def error(made: Array, wanted: Array) -> float:
    """Mean square of what the outputs of a sample differ by otherwise than they should; what they have in common does
    not count."""
    wrong = made - wanted
    return float(np.square(wrong - wrong.mean(axis=1, keepdims=True)).mean())
