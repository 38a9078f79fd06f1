"""Colours of scores and of merged tokens, and their outlines on the grid: what sheet and page have in common."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokcarve.exporters.pictures.kept import Kept

__all__ = ["SHADES", "heat", "means", "outlines", "owners", "ranks", "shade"]

Colours = NDArray[np.uint8]
Owners = NDArray[np.int64]

SHADES = ((68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37))
"""From the lowest score to the highest: viridis, which grows lighter all the way, also in grey."""
NOBODY = -1


def ranks(scores: Mapping[int, float]) -> dict[int, float]:
    """Every score's place from 0, the lowest, to 1, the highest; equal scores share one. Attention is so unevenly
    spread that shades by value would show a few bright patches and nothing else."""
    values = sorted(set(scores.values()))
    place = {value: i / max(1, len(values) - 1) for i, value in enumerate(values)}
    return {patch: place[score] for patch, score in scores.items()}


def shade(rank: float) -> tuple[int, int, int]:
    """The colour of a rank in 0..1."""
    at = rank * (len(SHADES) - 1)
    below = min(int(at), len(SHADES) - 2)
    low, high = SHADES[below], SHADES[below + 1]
    red, green, blue = (round(a + (b - a) * (at - below)) for a, b in zip(low, high, strict=True))
    return red, green, blue


def heat(scores: Mapping[int, float], total: int) -> Colours:
    """Red, green, blue and opacity of every patch, uint8 [total, 4]; a patch without a score is transparent."""
    found: Colours = np.zeros((total, 4), np.uint8)
    for patch, rank in ranks(scores).items():
        if patch >= 0:
            found[patch] = (*shade(rank), 255)
    return found


def owners(stage: Kept, total: int) -> Owners:
    """The patch of the token that stands for each patch behind a stage, int64 [total]; -1 where none does."""
    found: Owners = np.full(total, NOBODY, np.int64)
    for patch, owner in stage.members().items():
        # what went into the [CLS] row has no place in the image
        found[patch] = owner if owner >= 0 else NOBODY
    return found


def means(pixels: NDArray[Any], mine: Owners) -> NDArray[np.float64]:
    """The mean colour [owners + 1, 3] of the pixels [height, width, 3] of every owner, that of `mine` -1 first."""
    flat, count = mine.ravel() + 1, int(mine.max(initial=0)) + 2
    sizes = np.bincount(flat, minlength=count).clip(1)
    return np.stack([np.bincount(flat, pixels[..., i].ravel(), count) / sizes for i in range(3)], axis=1)


def outlines(owner: Owners, grid: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Lines (x1, y1, x2, y2) on the corners of patches, between neighbours that belong to different tokens."""
    rows, columns = grid
    cells = owner.reshape(rows, columns)
    found = []
    for row in range(rows):
        for left, right in pairwise(range(columns)):
            if cells[row, left] != cells[row, right]:
                found.append((right, row, right, row + 1))
    for above, below in pairwise(range(rows)):
        for column in range(columns):
            if cells[above, column] != cells[below, column]:
                found.append((column, below, column + 1, below))
    return found
