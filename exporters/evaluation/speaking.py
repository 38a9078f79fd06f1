"""Who answers questions: one side of an export in ONNX Runtime, or (tokcarve.exporters.evaluation.in_torch) in torch.

Questions are made ready by the artifact's own processor files for either, so that only the model differs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokcarve.exporters.device.pipeline import Pipeline
from tokcarve.exporters.device.playing import Asked, play
from tokcarve.exporters.device.session import Face, as_floats
from tokcarve.passes.inputs.images import load_image_processor
from tokcarve.passes.inputs.prompt import PromptError, load_prompter

__all__ = ["OrtSpeaker", "Preparer", "Speaker", "Spoken", "divergence"]

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Spoken:
    """Greedy tokens (a stop token, if one came, is the last) and the logits [tokens, vocab] that each was best in."""

    tokens: tuple[int, ...]
    logits: Floats


@runtime_checkable
class Speaker(Protocol):
    """A model that answers questions, made to say something or left to itself."""

    @property
    def batch(self) -> int:
        """Questions at once."""

    @property
    def provider(self) -> str:
        """Where it runs."""

    def free(self, asked: Sequence[Asked], most: int) -> list[Spoken]:
        """Answers of up to `most` tokens."""

    def forced(self, asked: Sequence[Asked], said: Sequence[Sequence[int]]) -> list[Floats]:
        """The logits [tokens, vocab] of every token of `said`, made to say it."""


class Preparer:
    """Pictures and questions as a model takes them; `max_text` words besides the image are what an export holds."""

    def __init__(self, processor: Path, image_token_id: int, max_text: int | None = None) -> None:
        self.images = load_image_processor(processor)
        self.prompter = load_prompter(processor, image_token_id)
        self.image_token_id, self.max_text = image_token_id, max_text

    def words(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Ids before and behind the image; PromptError for a prompt that is too long or names an image itself."""
        ids = self.prompter.encode(text, 1)
        if self.max_text is not None and len(ids) - 1 > self.max_text:
            raise PromptError(
                f"the prompt {text[:40]!r} has {len(ids) - 1} tokens besides the image, and this export holds "
                f"{self.max_text}; shorten it, or export again with `tokcarve export --max-text {len(ids) - 1}`"
            )
        place = ids.index(self.image_token_id)
        return tuple(ids[:place]), tuple(ids[place + 1 :])

    def asked(self, image: Image.Image, text: str) -> Asked:
        """A question about an image; raises as `words`."""
        before, after = self.words(text)
        return Asked(pixels=self.images([image]), before=before, after=after)

    def text(self, tokens: Sequence[int]) -> str:
        """What tokens spell, special ones left out."""
        return self.prompter.decode(tokens).strip()


class OrtSpeaker:
    """One side of a face, or a budget of a set; its graphs are loaded when it is first asked."""

    def __init__(self, face: Face, *, baseline: bool, budget: int | None = None) -> None:
        self.pipeline = Pipeline(face, baseline=baseline, budget=budget)
        self.batch = face.record.batch
        self.stops = face.record.geometry.eos_token_ids

    @property
    def provider(self) -> str:
        """Where the language model runs, in ONNX Runtime's words without their suffix."""
        return self.pipeline.graph("prefill").provider.removesuffix("ExecutionProvider")

    def free(self, asked: Sequence[Asked], most: int) -> list[Spoken]:
        """As `Speaker.free`."""
        tokens, logits = self._played(asked, most, None)
        ends = [next((i + 1 for i, token in enumerate(row) if token in self.stops), len(row)) for row in tokens]
        return [
            Spoken(tokens=tuple(row[:end]), logits=one[:end])
            for row, one, end in zip(tokens, logits, ends, strict=True)
        ]

    def forced(self, asked: Sequence[Asked], said: Sequence[Sequence[int]]) -> list[Floats]:
        """As `Speaker.forced`."""
        most = max(map(len, said))
        padded = [[*one, *one[-1:] * (most - len(one))] for one in map(list, said)]
        _, logits = self._played(asked, most, padded)
        return [one[: len(row)] for one, row in zip(logits, said, strict=True)]

    def _played(
        self, asked: Sequence[Asked], most: int, said: list[list[int]] | None
    ) -> tuple[list[list[int]], list[Floats]]:
        """Tokens and logits of every question; a short batch is filled with its last one."""
        missing = self.batch - len(asked)
        filled = [self._with_state(one) for one in [*asked, *[asked[-1]] * missing]]
        words = None if said is None else said + said[-1:] * missing
        played = play(self.pipeline, filled, most, words, () if words is not None else self.stops)
        logits = np.stack([as_floats(step["logits"][:, 0]).astype(np.float32) for step in played.steps], axis=1)
        return played.tokens.tolist()[: len(asked)], list(logits[: len(asked)])

    def _with_state(self, asked: Asked) -> Asked:
        """An empty history, where the method keeps one between images: what it does of its own accord."""
        prefill = self.pipeline.graph("prefill")
        state = {name: np.zeros((1, *prefill.shapes[name][1:]), prefill.types[name]) for name in self.pipeline.asks}
        return replace(asked, state=state)


def divergence(full: Floats, other: Floats) -> list[float]:
    """KL of `other` from `full`, both logits [tokens, vocab], at every token, in nats."""
    wanted, found = (_log_softmax(one.astype(np.float64)) for one in (full, other))
    gaps: list[float] = np.maximum((np.exp(wanted) * (wanted - found)).sum(axis=1), 0).tolist()
    return gaps


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(axis=1, keepdims=True)
    found: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return found
