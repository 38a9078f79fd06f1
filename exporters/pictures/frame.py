"""Where patches lie in a picture: the image, the part of it that the model sees, and the grid upon that part."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokcarve.exporters.pictures.kept import Look

__all__ = ["Frame"]

Labels = NDArray[np.int64]
OUTSIDE = -1


@dataclass(frozen=True)
class Frame:
    """What the model sees of an image, or the `whole` of it with padding if there is some, scaled so that the longer
    side is `side` pixels."""

    look: Look
    side: int
    whole: bool = False

    @property
    def box(self) -> tuple[float, float, float, float]:
        """Left, top, right and bottom of what is shown, in pixels of the image."""
        (width, height), (left, top, right, bottom) = self.look.size, self.look.seen
        if not self.whole:
            return self.look.seen
        return min(0.0, left), min(0.0, top), max(float(width), right), max(float(height), bottom)

    @property
    def scale(self) -> float:
        """Pixels of the picture per pixel of the image."""
        left, top, right, bottom = self.box
        return self.side / max(right - left, bottom - top)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture in pixels, at least one each."""
        left, top, right, bottom = self.box
        return max(1, round((right - left) * self.scale)), max(1, round((bottom - top) * self.scale))

    def canvas(self, image: Image.Image) -> NDArray[np.uint8]:
        """The image in its place, uint8 [height, width, 3]; padding is grey."""
        canvas = Image.new("RGB", self.size, (128, 128, 128))
        width, height = (max(1, round(length * self.scale)) for length in self.look.size)
        left, top = (round(-edge * self.scale) for edge in self.box[:2])
        canvas.paste(image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS), (left, top))
        return np.asarray(canvas)

    def labels(self) -> Labels:
        """The patch of every pixel, int64 [height, width]; -1 where the model sees nothing."""
        rows, columns = self.look.grid
        left, top, right, bottom = self.look.seen
        width, height = self.size
        row = _cells(height, rows, (top - self.box[1]) * self.scale, (bottom - self.box[1]) * self.scale)
        column = _cells(width, columns, (left - self.box[0]) * self.scale, (right - self.box[0]) * self.scale)
        inside = (row >= 0)[:, None] & (column >= 0)[None, :]
        found: Labels = np.where(inside, row[:, None] * columns + column[None, :], OUTSIDE)
        return found

    def shares(self) -> tuple[float, float, float, float]:
        """Left, top, width and height of what the model sees, as shares of the picture."""
        left, top, right, bottom = self.look.seen
        across, down = self.box[2] - self.box[0], self.box[3] - self.box[1]
        return (left - self.box[0]) / across, (top - self.box[1]) / down, (right - left) / across, (bottom - top) / down


def _cells(length: int, count: int, start: float, end: float) -> Labels:
    """Which of `count` equal cells from `start` to `end` the middle of every pixel lies in; -1 for none."""
    middles = (np.arange(length) + 0.5 - start) / (end - start) * count
    cells: Labels = np.floor(middles).astype(np.int64)
    return np.where((cells >= 0) & (cells < count), cells, OUTSIDE)
