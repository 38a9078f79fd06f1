"""What one sample says of a constant, and what many say together: exits that last, how widely attention spreads."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float
from torch import Tensor

__all__ = ["earliest", "least_and_most", "typical", "width"]


def typical(values: Sequence[int | float], quantile: float | None) -> float:
    """The mean of `values`, or their `quantile` in (0, 1], interpolated."""
    return math.fsum(values) / len(values) if quantile is None else float(np.quantile(values, quantile))


def earliest(allowed: Sequence[bool]) -> int:
    """The first place from which on all are allowed; len(allowed) where the last is not."""
    return next((i + 1 for i in reversed(range(len(allowed))) if not allowed[i]), 0)


def least_and_most(values: Sequence[int | float]) -> list[int | float]:
    """The least and the most of `values`."""
    return [min(values), max(values)]


def width(score: Float[Tensor, "batch n"]) -> Float[Tensor, " batch"]:
    """Over how many tokens a score >= 0 spreads: exp of its entropy, in 1..n; n for equal scores, and for none."""
    total = score.sum(dim=1, keepdim=True)
    share = (score / total.clamp_min(1e-12)).where(total > 0, 1 / score.shape[1])
    return (-(share * share.clamp_min(1e-12).log()).sum(dim=1)).exp()
