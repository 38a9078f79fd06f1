"""Columns that embeddings carry behind the hidden ones, so that the language model knows by itself where the image is,
and what vision hands to it."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokcarve.exporters.modules import FaceGraph, Shapes, final_kept
from tokcarve.passes.graph import Seen, TokenGraphs
from tokcarve.passes.invariants import propagate_vision

__all__ = ["Columns", "columned_vision", "columns"]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What a row of embeddings holds: `hidden` channels, the mark, with `placed` the patch id of a visual row, then of
    each handed tensor [tokens, ...] its sizes behind the first, by name. The runtime adds `void` rows around an
    image."""

    void: int
    hidden: int
    placed: bool
    handed: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def width(self) -> int:
        """Channels of a row."""
        return self.hidden + 1 + self.placed + sum(_numel(sizes) for _, sizes in self.handed)

    def join(self, seen: Seen, kept: Tensor) -> Tensor:
        """What vision gave, with the patch ids [batch, tokens] that it kept -> visual rows [batch, tokens, width]."""
        batch, count = seen.features.shape[:2]
        mark = torch.ones_like(seen.features[:, :, :1])
        places = [kept.unsqueeze(2).to(mark.dtype)] if self.placed else []
        handed = [seen.handed[name].reshape(batch, count, -1) for name, _ in self.handed]
        return torch.cat([seen.features, mark, *places, *handed], dim=2)

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Of rows [batch, n, width]: hidden, marks [batch, n], patch ids int64 [batch, n] (zeros if not placed), and
        what was handed by name [batch, n, ...]."""
        start = self.hidden + 1 + self.placed
        handed = {}
        for name, sizes in self.handed:
            handed[name] = rows[:, :, start : start + _numel(sizes)].reshape(rows.shape[0], -1, *sizes)
            start += _numel(sizes)
        places = rows[:, :, self.hidden + 1] if self.placed else torch.zeros_like(rows[:, :, 0])
        return rows[:, :, : self.hidden], rows[:, :, self.hidden], places.long(), handed


def _numel(sizes: tuple[int, ...]) -> int:
    return int(torch.Size(sizes).numel())


def columns(graphs: TokenGraphs, *, void: int) -> Columns:
    """The columns of a carved model for a runtime that adds `void` rows around an image."""
    handed = propagate_vision(graphs, batch=1).handed if graphs.handed else {}
    return Columns(
        void=void,
        hidden=graphs.geometry.text.hidden,
        placed=graphs.embedding.total is not None,
        handed=tuple((name, tuple(tensor.shape[2:])) for name, tensor in handed.items()),
    )


class _Vision(nn.Module):
    def __init__(self, graphs: TokenGraphs, wide: Columns) -> None:
        super().__init__()
        self.vision, self.total, self.wide = graphs.vision, graphs.geometry.total, wide

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        seen = Seen(*self.vision(pixel_values))
        kept = final_kept(seen.kept, pixel_values.shape[0], self.total)
        return self.wide.join(seen, kept), kept.clone()


def columned_vision(graphs: TokenGraphs, sizes: Shapes, wide: Columns) -> FaceGraph:
    """pixel_values [batch, 3, height, width], normalised -> image_features [batch, tokens, width of `wide`],
    kept_indices int64 [batch, tokens]."""
    side = graphs.geometry.vision.image_size
    return FaceGraph(
        module=_Vision(graphs, wide),
        inputs=(torch.zeros(sizes.batch, 3, side, side),),
        input_names=("pixel_values",),
        output_names=("image_features", "kept_indices"),
    )
