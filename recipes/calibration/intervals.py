"""How sure a share or a difference is that was measured on a few samples: 95 % intervals."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["paired", "redrawn", "share"]

Z = 1.959963984540054  # of the normal distribution, 95 % within
RESAMPLES = 2000


def share(hits: Sequence[int | float]) -> list[float]:
    """The share of hits (1, else 0) among samples, and the ends of Wilson's interval: [share, low, high]."""
    count, mean = len(hits), sum(hits) / len(hits)
    centre = mean + Z * Z / (2 * count)
    half = Z * math.sqrt(mean * (1 - mean) / count + Z * Z / (4 * count * count))
    whole = 1 + Z * Z / count
    return [mean, max(0.0, (centre - half) / whole), min(1.0, (centre + half) / whole)]


def paired(first: Sequence[int | float], second: Sequence[int | float], seed: int = 0) -> list[float]:
    """The mean of first - second over samples, and the ends of its bootstrap interval: [difference, low, high].

    Samples are drawn anew with both their values; `seed` makes the draws.
    """
    gaps = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    drawn = np.random.RandomState(seed).randint(len(gaps), size=(RESAMPLES, len(gaps)))
    low, high = np.quantile(gaps[drawn].mean(axis=1), [0.025, 0.975])
    return [float(gaps.mean()), float(low), float(high)]


def redrawn(values: NDArray[np.float64], groups: Sequence[int], seed: int = 0) -> NDArray[np.float64]:
    """Sums [draws, n] of `values` [samples, n] over samples whose groups, numbered from 0, are drawn anew as a whole.

    The same groups and seed make the same draws, so that sums of two models may be compared draw by draw.
    """
    count = max(groups) + 1
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, np.asarray(groups), values)
    picked = np.random.RandomState(seed)
    return np.stack([np.bincount(picked.randint(count, size=count), minlength=count) @ sums for _ in range(RESAMPLES)])
