"""The graphs of a `genai` face, run as its runtime runs them: raw pixels and token ids in, one growing cache."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from PIL import Image

from tokcarve.exporters.device.pipeline import Ids, greedy
from tokcarve.exporters.device.session import Array, start

__all__ = ["EMBEDDING", "TEXT", "VISION", "Growing", "Heard", "raw_pixels"]

VISION, EMBEDDING, TEXT = "genai.vision.onnx", "genai.embedding.onnx", "genai.text.onnx"
"""The graphs of the face, in the folder of graphs."""


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What a runtime says of one prompt: its ids [rows], logits [vocab] of its last row, tokens [new]."""

    ids: NDArray[np.int64]
    logits: NDArray[np.floating]
    tokens: NDArray[np.int64]


def raw_pixels(image: Image.Image) -> NDArray[np.float32]:
    """An image as the runtime decodes it: whole numbers 0..255, float32 [1, 1, 3, height, width]."""
    pixels: NDArray[np.float32] = np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1)
    return np.ascontiguousarray(pixels[None, None])


class Growing:
    """The three graphs in `folder`, loaded on the CPU; ExportError if ONNX Runtime cannot."""

    def __init__(self, folder: Path) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        self._vision, self._embedding, self._text = (
            start(folder / name, options, ("CPUExecutionProvider",)) for name in (VISION, EMBEDDING, TEXT)
        )

    def answer(self, image: Image.Image | None, ids: Sequence[int], new: int) -> Heard:
        """`new` greedy tokens behind a prompt, past any stop, about an image or about none."""
        seen = self.see(image) if image is not None else self._nothing()
        steps = list(self._steps(np.array([ids], np.int64), seen, new))
        tokens = np.concatenate([greedy(logits)[0] for logits in steps])
        return Heard(ids=np.array(ids, np.int64), logits=steps[0][0, -1], tokens=tokens)

    def see(self, image: Image.Image) -> Array:
        """Visual rows [tokens, width]."""
        seen: Array = self._vision.run(None, {"pixel_values": raw_pixels(image)})[0]
        return seen

    def _nothing(self) -> Array:
        width = next(one.shape[1] for one in self._embedding.get_inputs() if one.name == "image_features")
        return np.zeros((0, width), np.float32)

    def _steps(self, ids: Ids, seen: Array, new: int) -> Iterator[Array]:
        """Logits [1, 1, vocab] of the prompt's last row, then of every greedy token but the last."""
        cache = {
            one.name: np.zeros((1, one.shape[1], 0, one.shape[3]), np.float32)
            for one in self._text.get_inputs()
            if one.name.startswith("past_key_values")
        }
        for step in range(new):
            rows = self._embedding.run(None, {"input_ids": ids, "image_features": seen})[0]
            cached = next(iter(cache.values())).shape[2]
            feeds: dict[str, Any] = {
                "inputs_embeds": rows,
                "attention_mask": np.ones((1, cached + ids.shape[1]), np.int64),
                "position_ids": np.arange(cached, cached + ids.shape[1])[None],
            }
            logits, *present = self._text.run(None, {**feeds, **cache})
            yield logits
            if step + 1 < new:
                cache, ids, seen = dict(zip(cache, present, strict=True)), greedy(logits), self._nothing()
