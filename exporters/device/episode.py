"""Methods that keep a state between images: what the last answers looked at guides what is kept of the next image.

A robot's policy asks about one frame after the other, and the attention of its actions hardly changes from frame to
frame. Until the history is full the unpruned graphs answer, as arXiv:2511.16449 does it.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from tokcarve.exporters.device.answer import Answerer, Answers, OnToken
from tokcarve.exporters.device.pipeline import Ids
from tokcarve.exporters.device.session import Array
from tokcarve.passes.errors import ExportError

__all__ = ["ActionHistory", "Episode", "Frame"]

Order = Literal["paper", "published"]


class ActionHistory:
    """Which of `total` patches the actions of the last `window` frames looked at.

    `guide` is their sum, weighted by `decay` to the power of their age, 1 for the newest ("paper"); the reference code
    gives the oldest the weight 1 and the newest the least ("published").
    """

    def __init__(self, total: int, *, window: int = 3, decay: float = 0.8, order: Order = "paper") -> None:
        if window < 1 or not 0 < decay <= 1:
            raise ExportError(
                f"window={window} with decay={decay} is no history; give a window of 1 or more, and a decay in (0, 1]"
            )
        self.total, self.decay, self.order = total, decay, order
        self.frames: deque[Array] = deque(maxlen=window)

    @property
    def full(self) -> bool:
        """Whether `window` frames have been added since the last `clear`."""
        return len(self.frames) == self.frames.maxlen

    def clear(self) -> None:
        """Forgets everything: a new episode begins."""
        self.frames.clear()

    def add(self, attention: Array, kept: Ids) -> None:
        """One frame: attention [rows that said an action, n] to the patches `kept` [n]; the others received none."""
        whole = np.zeros(self.total, np.float32)
        whole[kept] = attention.mean(axis=0)
        self.frames.append(whole)

    def guide(self) -> Array:
        """float32 [1, total], zero before the first frame."""
        newest_first = list(reversed(self.frames))
        if self.order == "paper":
            weights = [self.decay**age for age in range(1, len(newest_first) + 1)]
        else:
            weights = [self.decay ** (len(newest_first) - 1 - age) for age in range(len(newest_first))]
        summed = sum((w * frame for w, frame in zip(weights, newest_first, strict=True)), np.zeros(self.total))
        return np.asarray(summed, np.float32)[None]


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The answer about one frame, and whether the pruned graphs gave it."""

    answers: Answers
    pruned: bool


class Episode:
    """An artifact whose method keeps a state, asked about one frame after the other.

    Raises ExportError for an artifact whose method keeps none or was exported for more than one image at a time.
    """

    def __init__(
        self, artifact: Path, *, window: int = 3, decay: float = 0.8, order: Order = "paper", threads: int | None = None
    ) -> None:
        self.pruned = Answerer(artifact, threads=threads)
        if not self.pruned.asks:
            raise ExportError(f"the method of {artifact} keeps no state between images; ask about one image at a time")
        if self.pruned.record.batch != 1:
            raise ExportError(
                f"{artifact} was exported for {self.pruned.record.batch} images at a time, and an episode shows one; "
                "export it with --batch 1"
            )
        self.unpruned = Answerer(artifact, baseline=True, threads=threads)
        self.history = ActionHistory(self.pruned.record.total, window=window, decay=decay, order=order)

    def answer(
        self, image: Image.Image, prompt: str, max_new: int | None = None, on_token: OnToken | None = None
    ) -> Frame:
        """The answer about the next frame; raises as `Answerer.answer`."""
        pruned = self.history.full
        state: Mapping[str, Array] = {name: self.history.guide() for name in self.pruned.asks} if pruned else {}
        answerer = self.pruned if pruned else self.unpruned
        made = answerer.answer([image], [prompt], max_new, on_token, state=state)
        for attention in made.given.values():
            self.history.add(attention[0], made.kept_indices[0])
        return Frame(answers=made, pruned=pruned)
