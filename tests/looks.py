"""A look made by hand: 4 x 4 patches of 7 pixels, one method that chooses twice and one that merges."""

import numpy as np
from PIL import Image

from tokcarve.exporters.pictures.kept import Column, Kept, Look

__all__ = ["CHOOSING", "MERGING", "look", "picture"]

CHOOSING = Column(
    name="choosing",
    method="vtc_cls",
    runtime="torch",
    source="toy",
    tokens=2,
    total=16,
    answer="a <b>cat</b>",
    stages=(
        Kept(
            site="vision.layers.1",
            total=16,
            keep=4,
            how="choose",
            patches=(0, 5, 10, 15),
            scores={patch: float(patch % 5 == 0) + patch / 100 for patch in range(16)},
        ),
        Kept(
            site="language.layers.2",
            total=4,
            keep=2,
            how="choose",
            patches=(5, 10),
            scores={0: 0.1, 5: 3.0, 10: 2.0, 15: 0.1},
        ),
    ),
)
MERGING = Column(
    name="merging",
    method="tome",
    runtime="torch",
    source="toy",
    tokens=2,
    total=16,
    stages=(
        Kept(
            site="connector",
            total=16,
            keep=2,
            how="merge",
            patches=(1, 10),
            groups=((0, 1, 2, 3), (8, 9, 10)),
        ),
    ),
    notes=("a note with <i>markup</i>",),
)


def picture(width: int = 28, height: int = 28) -> Image.Image:
    """Red rises to the right, green downwards."""
    made = np.zeros((height, width, 3), np.uint8)
    made[..., 0] = np.linspace(0, 255, width).astype(np.uint8)[None, :]
    made[..., 1] = np.linspace(0, 255, height).astype(np.uint8)[:, None]
    return Image.fromarray(made)


def look(*columns: Column, size: tuple[int, int] = (28, 28)) -> Look:
    """These columns on a picture of that size, of which the model sees the square in the middle."""
    width, height = size
    side = min(size)
    left, top = (width - side) / 2, (height - side) / 2
    return Look(
        image="a & b.png",
        size=size,
        seen=(left, top, left + side, top + side),
        grid=(4, 4),
        prompt="what <is> it?",
        columns=columns or (CHOOSING, MERGING),
    )
