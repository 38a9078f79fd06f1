"""How sure a share or a difference is that was measured on a few samples: 95 % intervals."""

import math
from collections.abc import Sequence

import numpy as np

__all__ = ["paired", "share"]

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
