"""What a model's shapes are, without its weights: the numbers that plans, reports and devices need."""

from dataclasses import dataclass
from typing import Literal

__all__ = [
    "CLIP_MEAN",
    "CLIP_STD",
    "Geometry",
    "TextGeometry",
    "VisionGeometry",
    "centres",
    "even_positions",
    "lattice",
]

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""What pixels in 0..1 are normalised with before a CLIP tower, per channel."""


@dataclass(frozen=True, kw_only=True)
class VisionGeometry:
    """The vision tower. Sizes in pixels, widths in channels, `grid` in patches (rows, columns).

    mean, std: what pixels in 0..1 were normalised with, per channel, as towers of this kind are trained.
    """

    kind: Literal["clip", "siglip"]
    image_size: int
    patch_size: int
    grid: tuple[int, int]
    hidden: int
    heads: int
    head_dim: int
    mlp: int
    layers: int
    layers_used: int  # the features leave after this many layers; later ones are never run
    prefix: int  # rows before the first patch: 1 with a [CLS] token, 0 without
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class TextGeometry:
    """The language model. `head_dim` counts channels per head; `sliding_window` rows, or None for full attention;
    `tied`: the head is the embedding table."""

    kind: str
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    layers: int
    vocab: int
    max_positions: int
    sliding_window: int | None
    tied: bool = False


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """One model: tower, language model, and the visual tokens (`total`) between them."""

    vision: VisionGeometry
    text: TextGeometry
    total: int
    image_token_id: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int


def lattice(count: int, rows: int, columns: int) -> tuple[int, int] | None:
    """The most square (h, w) with h * w == count, h <= rows, w <= columns; None where there is none."""
    fits = [(h, count // h) for h in range(1, rows + 1) if count % h == 0 and count // h <= columns]
    return min(fits, key=lambda hw: abs(hw[0] / rows - hw[1] / columns)) if fits else None


def even_positions(count: int, total: int) -> list[int]:
    """`count` places spread evenly over 0..total-1, strictly rising, half a step from either end."""
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def centres(cells: tuple[int, int], grid: tuple[int, int]) -> list[int]:
    """The patch of `grid` in the middle of each of (h, w) `cells`, in raster order."""
    return [r * grid[1] + c for r in even_positions(cells[0], grid[0]) for c in even_positions(cells[1], grid[1])]
