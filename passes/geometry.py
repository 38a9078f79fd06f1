"""What a model's shapes are, without its weights: the numbers that plans, reports and devices need."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Geometry", "TextGeometry", "VisionGeometry"]


@dataclass(frozen=True, kw_only=True)
class VisionGeometry:
    """The vision tower. Sizes in pixels, widths in channels, `grid` in patches (rows, columns)."""

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


@dataclass(frozen=True, kw_only=True)
class TextGeometry:
    """The language model. `head_dim` counts channels per head; `sliding_window` rows, or None for full attention."""

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


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """One model: tower, language model, and the visual tokens (`total`) between them."""

    vision: VisionGeometry
    text: TextGeometry
    total: int
    image_token_id: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
