"""Columns that embeddings carry behind the hidden ones, so that the language model knows by itself where the image is,
and what vision hands to it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.invariants import propagate_vision

__all__ = ["Columns", "columns"]


@dataclass(frozen=True, kw_only=True)
class Columns:
    """What a row of embeddings holds: `hidden` channels, the mark, with `placed` the patch id of a visual row, then of
    each handed tensor [tokens, ...] its sizes behind the first, by name."""

    hidden: int
    placed: bool
    handed: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def width(self) -> int:
        """Channels of a row."""
        return self.hidden + 1 + self.placed + sum(_numel(sizes) for _, sizes in self.handed)

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


def columns(graphs: TokenGraphs) -> Columns:
    """The columns of a carved model."""
    handed = propagate_vision(graphs, batch=1).handed if graphs.handed else {}
    return Columns(
        hidden=graphs.geometry.text.hidden,
        placed=graphs.embedding.total is not None,
        handed=tuple((name, tuple(tensor.shape[2:])) for name, tensor in handed.items()),
    )
