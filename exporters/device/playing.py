"""Samples through the four graphs of a side, step by step: what comparing and measuring look at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokcarve.exporters.device.pipeline import Pipeline, greedy

__all__ = ["Asked", "Played", "play"]

Floats = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One sample: pixels [1, 3, height, width], ids of the words before and behind the image, state [1, n] by name."""

    pixels: Floats
    before: tuple[int, ...]
    after: tuple[int, ...]
    state: Mapping[str, Floats] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Played:
    """One batch through all four graphs: what vision and embedding gave, then prefill and every decode step; tokens
    [batch, new] are the best of each."""

    seen: Mapping[str, Any]
    embedded: Mapping[str, Any]
    steps: Sequence[Mapping[str, Any]]
    tokens: NDArray[np.int64]


def play(
    pipeline: Pipeline,
    samples: Sequence[Asked],
    new: int,
    said: Sequence[Sequence[int]] | None = None,
    stops: Sequence[int] = (),
) -> Played:
    """One exported batch; every sample goes on past a stop token, until all have said one of `stops`. Each step is fed
    the best token of the one before it, or with `said` what was said there."""
    record = pipeline.record
    geometry, tokens = record.geometry, pipeline.side.tokens
    prompts = [[*one.before, *[geometry.image_token_id] * tokens, *one.after] for one in samples]
    ids = np.full((len(samples), record.max_text + tokens), geometry.pad_token_id, np.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    lengths = np.array([len(prompt) for prompt in prompts], np.int64)
    seen = pipeline.vision(np.concatenate([sample.pixels for sample in samples]), ids, lengths)
    state = {name: np.concatenate([s.state[name] for s in samples]) for name in samples[0].state}
    embedded = pipeline.embed(ids, seen)
    first = pipeline.prefill({**embedded, **state}, lengths)
    cache, made = pipeline.cache(first), [first]
    best = [greedy(first["logits"])]
    for step in range(new - 1):
        if stops and np.isin(np.concatenate(best, axis=1), stops).any(axis=1).all():
            break
        fed = best[-1] if said is None else np.array([[one[step]] for one in said], np.int64)
        made.append(pipeline.step(fed, lengths, step, cache))
        best.append(greedy(made[-1]["logits"]))
    return Played(seen=seen, embedded=embedded, steps=made, tokens=np.concatenate(best, axis=1))
