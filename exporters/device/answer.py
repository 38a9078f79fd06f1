"""Answers about images from an exported `ort` face: vision, embedding, prefill, then greedy decoding in numpy.

Every graph has fixed shapes, so a short batch is filled up by repeating its last row, and a longer one runs in chunks.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokcarve.exporters.device.pipeline import Ids, Pipeline, greedy
from tokcarve.exporters.device.session import GRAPHS, Array, open_face
from tokcarve.passes.errors import ArtifactError
from tokcarve.passes.inputs.images import load_image_processor
from tokcarve.passes.inputs.prompt import PromptError, load_prompter

__all__ = ["Answerer", "Answers", "Generation", "OnToken", "Timings"]

OnToken = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Wall-clock milliseconds of one chunk; `decode` has one entry per step after the first token."""

    preprocess: float
    vision: float
    embedding: float
    prefill: float
    decode: tuple[float, ...]

    @property
    def first_token(self) -> float:
        """From pixels and token ids to the first generated token; `preprocess` is not in it."""
        return self.vision + self.embedding + self.prefill

    def record(self) -> dict[str, Any]:
        """These timings as JSON, milliseconds."""
        return {
            "preprocess": self.preprocess,
            "vision": self.vision,
            "embedding": self.embedding,
            "prefill": self.prefill,
            "first_token": self.first_token,
            "decode": list(self.decode),
        }


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Greedy tokens per row (a stop token, if one came, is the last), kept patch ids [rows, keep] as in
    `Pipeline.kept_by_site`, timings by chunk; given [rows, tokens said, ...] by name: what the method tells of every
    row that said a token."""

    tokens: tuple[tuple[int, ...], ...]
    kept_by_site: Mapping[str, Ids]
    timings: tuple[Timings, ...]
    given: Mapping[str, Array]

    @property
    def kept_indices(self) -> Ids:
        """Patch ids [rows, keep] of what is left behind the last stage that chose."""
        return list(self.kept_by_site.values())[-1]


@dataclass(frozen=True, kw_only=True)
class Answers(Generation):
    """A generation with its text, row by row."""

    text: tuple[str, ...]


class Answerer:
    """One side of an exported artifact, loaded and ready; `baseline` takes the unpruned graphs, `budget` those of one
    count of a set, which without it are the largest one's.

    Raises BudgetError for a count that the set does not have, ExportError or ArtifactError if the artifact has no
    usable `ort` face.
    """

    def __init__(
        self, artifact: Path, *, baseline: bool = False, threads: int | None = None, budget: int | None = None
    ) -> None:
        self.face = open_face(artifact, threads)
        self.record = self.face.record
        self.side = self.record.side(baseline, budget)
        self.images = load_image_processor(artifact / "processor")
        self.prompter = load_prompter(artifact / "processor", self.record.geometry.image_token_id)
        self.pipeline = Pipeline(self.face, baseline=baseline, budget=budget)
        for name in GRAPHS:
            self.pipeline.graph(name)

    @property
    def asks(self) -> tuple[str, ...]:
        """The state, by name, that the method expects with every image; empty for a method that keeps none."""
        return self.pipeline.asks

    @property
    def provider(self) -> str:
        """Where the language model runs, in ONNX Runtime's words without their suffix: CUDA or CPU."""
        graph = self.pipeline.graph("prefill")
        name = graph.provider.removesuffix("ExecutionProvider")
        return f"{name} (CUDA did not start)" if graph.fell_back else name

    def answer(
        self,
        images: Sequence[Image.Image],
        prompts: Sequence[str],
        max_new: int | None = None,
        on_token: OnToken | None = None,
        state: Mapping[str, Array] | None = None,
    ) -> Answers:
        """Answers `prompts[i]` about `images[i]` with up to `max_new` tokens (default: what was exported).

        `on_token(i, token)` is called for every token as it comes; `state` holds what `asks` names. Raises PromptError
        for a prompt that is too long or names an image itself, or a `max_new` outside 1..exported; nothing runs then.
        """
        if len(images) != len(prompts) or not images:
            raise PromptError(f"{len(prompts)} prompts for {len(images)} images; give one of each per answer")
        clock = _Clock()
        ids = [self.prompter.encode(prompt, self.side.tokens) for prompt in prompts]
        pixels = self.images(images)
        made = self.generate(pixels, ids, max_new, on_token, preprocess=clock.lap(), state=state)
        text = tuple(self.prompter.decode(tokens) for tokens in made.tokens)
        return Answers(text=text, **{one.name: getattr(made, one.name) for one in fields(made)})

    def generate(
        self,
        pixel_values: NDArray[np.float32],
        input_ids: Sequence[Sequence[int]],
        max_new: int | None = None,
        on_token: OnToken | None = None,
        preprocess: float = 0.0,
        state: Mapping[str, Array] | None = None,
    ) -> Generation:
        """Greedy tokens for `pixel_values` float32 [rows, 3, height, width] and as many prompts.

        Prompts are token ids that hold the image token as often as tokens enter the language model (`side.tokens`),
        unpadded. `preprocess` milliseconds are recorded with the timings, shared among chunks. Raises as `answer`.
        """
        new = self._allowed_new(max_new)
        self._check(pixel_values, input_ids)
        missing = [name for name in self.asks if name not in (state or {})]
        if missing:
            raise PromptError(
                f"this method chooses by {missing[0]!r}, which it gathers from image to image; show it several, one "
                "after the other"
            )
        rows, batch = len(input_ids), self.record.batch
        chunks = [list(range(start, min(start + batch, rows))) for start in range(0, rows, batch)]
        made = [_Chunk(self.pipeline, pixel_values, input_ids, chunk) for chunk in chunks]
        done = [chunk.run(new, on_token, preprocess / len(chunks), state or {}) for chunk in made]
        given = {name: np.concatenate([chunk.told(name) for chunk in made]) for name in made[0].given[0]}
        return Generation(
            tokens=tuple(tuple(tokens) for chunk in made for tokens in chunk.tokens),
            kept_by_site={site: np.concatenate([chunk.kept[site] for chunk in made]) for site in made[0].kept},
            timings=tuple(done),
            given=given,
        )

    def _allowed_new(self, max_new: int | None) -> int:
        most = self.record.max_new
        if max_new is None:
            return most
        if not 1 <= max_new <= most:
            raise PromptError(
                f"max_new={max_new} does not fit this export; ask for 1..{most}, "
                f"or export again with `tokcarve export --max-new {max(1, max_new)}`"
            )
        return max_new

    def _check(self, pixel_values: NDArray[np.float32], input_ids: Sequence[Sequence[int]]) -> None:
        wanted = self.pipeline.graph("vision").shapes["pixel_values"][1:]
        if pixel_values.shape[1:] != wanted or len(pixel_values) != len(input_ids):
            raise ArtifactError(
                f"the image processor makes {len(pixel_values)} x {pixel_values.shape[1:]}, and the model takes "
                f"{len(input_ids)} x {wanted}; use the processor files of the model's own checkpoint"
            )
        image_token = self.record.geometry.image_token_id
        for ids in input_ids:
            text = len(ids) - self.side.tokens
            if text > self.record.max_text:
                raise PromptError(
                    f"the prompt has {text} tokens besides the image, and this export holds {self.record.max_text}; "
                    f"shorten it, or export again with `tokcarve export --max-text {text}`"
                )
            if list(ids).count(image_token) != self.side.tokens:
                raise PromptError(
                    f"the prompt holds {list(ids).count(image_token)} image tokens, and {self.side.tokens} enter "
                    f"the language model; repeat token {image_token} that often"
                )


class _Chunk:
    """One batch on its way through the four graphs: `wanted` are the caller's rows in it."""

    def __init__(
        self, pipeline: Pipeline, pixels: NDArray[np.float32], ids: Sequence[Sequence[int]], wanted: list[int]
    ) -> None:
        record = pipeline.record
        filled = wanted + wanted[-1:] * (record.batch - len(wanted))
        self.pipeline, self.wanted = pipeline, wanted
        self.stops = record.geometry.eos_token_ids
        self.pixels = np.ascontiguousarray(pixels[filled])
        self.ids = np.full(
            (len(filled), record.max_text + pipeline.side.tokens), record.geometry.pad_token_id, np.int64
        )
        for row, source in enumerate(filled):
            self.ids[row, : len(ids[source])] = ids[source]
        self.lengths: Ids = np.array([len(ids[source]) for source in filled], np.int64)
        self.tokens: list[list[int]] = [[] for _ in wanted]
        self.kept: dict[str, Ids] = {}
        self.given: list[dict[str, Array]] = []

    def told(self, name: str) -> Array:
        """What the method told under `name`: [wanted rows, tokens said, ...]."""
        return np.stack([one[name][: len(self.wanted)] for one in self.given], axis=1)

    def run(self, max_new: int, on_token: OnToken | None, preprocess: float, state: Mapping[str, Array]) -> Timings:
        """Fills `tokens` and `kept`; gives the timings."""
        pipeline, clock = self.pipeline, _Clock()
        seen = pipeline.vision(self.pixels, self.ids, self.lengths)
        vision = clock.lap()
        embedded = pipeline.embed(self.ids, seen)
        embedding = clock.lap()
        prefilled = pipeline.prefill({**embedded, **state}, self.lengths)
        self.given = [pipeline.told(prefilled)]
        latest = greedy(prefilled["logits"])
        prefill = clock.lap()
        kept = pipeline.kept_by_site(seen, prefilled)
        self.kept = {site: ids[: len(self.wanted)] for site, ids in kept.items()}
        self._take(latest, on_token)
        cache, steps = pipeline.cache(prefilled), list[float]()
        while len(steps) + 1 < max_new and not all(tokens[-1] in self.stops for tokens in self.tokens):
            clock.lap()
            made = pipeline.step(latest, self.lengths, len(steps), cache)
            self.given.append(pipeline.told(made))
            latest = greedy(made["logits"])
            steps.append(clock.lap())
            self._take(latest, on_token)
        return Timings(preprocess=preprocess, vision=vision, embedding=embedding, prefill=prefill, decode=tuple(steps))

    def _take(self, latest: Ids, on_token: OnToken | None) -> None:
        """Keeps the new token of every row that is still going."""
        for row, tokens in enumerate(self.tokens):
            if tokens and tokens[-1] in self.stops:
                continue
            tokens.append(int(latest[row, 0]))
            if on_token is not None:
                on_token(self.wanted[row], tokens[-1])


class _Clock:
    """Milliseconds between calls of `lap`."""

    def __init__(self) -> None:
        self.last = perf_counter()

    def lap(self) -> float:
        before, self.last = self.last, perf_counter()
        return (self.last - before) * 1000
