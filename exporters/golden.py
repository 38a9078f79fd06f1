"""Golden samples: seeded images and prompts, and what torch makes of them, one by one and without padding."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokcarve.exporters.modules import final_kept
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.graph import Seen, TokenGraphs, all_kept, thread, visual_start

__all__ = ["Golden", "Reference", "Sample", "make_samples", "reference", "save_golden"]

NEW_TOKENS = 16
"""Greedy tokens per sample."""

_NUDGE = 1e-5
_NUDGES = 3
_ATTEMPTS = 8
# of the largest feature: a nudge alone moves features by half of this at most, merging elsewhere by much more
_MERGED_ELSEWHERE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Sample:
    """pixel_values float32 [1, 3, side, side]; before, after: text ids on both sides of the image, unpadded; state
    [1, visual tokens] by name: what a method expects of whoever runs it."""

    pixel_values: Tensor
    before: tuple[int, ...]
    after: tuple[int, ...]
    state: Mapping[str, Tensor] = field(default_factory=dict)

    def ids(self, image_token_id: int, tokens: int) -> list[int]:
        """The prompt with `tokens` image tokens."""
        return [*self.before, *[image_token_id] * tokens, *self.after]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What torch says of one sample: kept [keep] original patch ids, features [keep, hidden], logits [vocab] of the
    last prompt row, greedy tokens [new] past any stop token, and margins [new]: best logit minus second best; given
    [new, ...] by name: what a method tells whoever runs it."""

    kept: Tensor
    features: Tensor
    logits: Tensor
    tokens: Tensor
    margins: Tensor
    given: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Samples with their references from the pruned and from the unpruned model; `skipped` images were ambiguous."""

    samples: tuple[Sample, ...]
    pruned: tuple[Reference, ...]
    plain: tuple[Reference, ...]
    skipped: int


def make_samples(graphs: TokenGraphs, *, count: int, max_text: int, seed: int = 0) -> tuple[tuple[Sample, ...], int]:
    """`count` samples whose text lengths go from short to exactly `max_text`, and how many images were passed over.

    An image is passed over when changes of its pixels by 1e-5 change what is kept or merged: there two correct programs
    may differ. After eight in a row the next one is taken as it is.
    """
    generator = torch.Generator().manual_seed(seed)
    samples, skipped = [], 0
    for i in range(count):
        pixels = _picture(graphs.geometry, generator)
        text = _text(graphs.geometry, max(1, max_text * (i + 1) // count), generator)
        state = {name: torch.rand(1, thread(graphs.vision).count, generator=generator) for name in graphs.asks}
        for _ in range(_ATTEMPTS):
            sample = _sample(pixels, text, state)
            if _stable(graphs, sample, generator):
                break
            pixels, skipped = _picture(graphs.geometry, generator), skipped + 1
        samples.append(_sample(pixels, text, state))
    return tuple(samples), skipped


def _sample(pixels: Tensor, text: list[int], state: Mapping[str, Tensor]) -> Sample:
    split = min(3, len(text) // 2)
    return Sample(pixel_values=pixels, before=tuple(text[:split]), after=tuple(text[split:]), state=state)


def _picture(geometry: Geometry, generator: torch.Generator) -> Tensor:
    """Smooth coloured shapes over weak noise, about as bright as normalised photographs: no two patches are alike."""
    side = geometry.vision.image_size
    coarse = torch.randn(1, 3, 7, 7, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=False)
    return smooth + 0.1 * torch.randn(1, 3, side, side, generator=generator)


def _text(geometry: Geometry, length: int, generator: torch.Generator) -> list[int]:
    special = {geometry.image_token_id, geometry.pad_token_id, *geometry.eos_token_ids}
    drawn = torch.randint(0, geometry.text.vocab, (4 * length + 64,), generator=generator).tolist()
    return [token for token in drawn if token not in special][:length]


def _stable(graphs: TokenGraphs, sample: Sample, generator: torch.Generator) -> bool:
    pixels = sample.pixel_values
    with torch.no_grad():
        made, kept = _outcome(graphs, sample, pixels)
        for _ in range(_NUDGES if kept else 0):
            nudged = pixels + _NUDGE * torch.randn(pixels.shape, generator=generator)
            moved, again = _outcome(graphs, sample, nudged)
            if not all(torch.equal(kept[site], again[site]) for site in kept):
                return False
            if float((moved - made).abs().max()) > _MERGED_ELSEWHERE * float(made.abs().max()):
                return False
    return True


def _outcome(graphs: TokenGraphs, sample: Sample, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """What merging elsewhere would change, the features or where the language model merges the logits; and the ids."""
    seen = graphs.see(pixels, *_prompt(graphs, sample, 1))
    if not graphs.language_inputs:
        return seen.features, seen.kept
    read, _ = graphs.read(*_asked(graphs, sample, seen), sample.state)
    return read.logits[0, -1], all_kept(seen, read)


def _asked(graphs: TokenGraphs, sample: Sample, seen: Seen) -> tuple[Tensor, Seen, Tensor]:
    ids, length = _prompt(graphs, sample, seen.features.shape[1])
    return ids, seen, length


def _prompt(graphs: TokenGraphs, sample: Sample, tokens: int) -> tuple[Tensor, Tensor]:
    ids = torch.tensor([sample.ids(graphs.geometry.image_token_id, tokens)])
    return ids, torch.tensor([ids.shape[1]])


def reference(graphs: TokenGraphs, sample: Sample, new: int) -> Reference:
    """What `graphs` make of one sample in torch: no padding, growing caches, nothing shared with the exported form."""
    with torch.no_grad():
        seen = graphs.see(sample.pixel_values, *_prompt(graphs, sample, 1))
        ids, _, length = _asked(graphs, sample, seen)
        read, positions = graphs.read(ids, seen, length, sample.state)
        keys, values = read.keys, read.values
        rows, given = [read.logits[0, -1]], [read.given]
        start = visual_start(ids, graphs.geometry.image_token_id)
        for step in range(new - 1):
            latest, position = rows[-1].argmax().view(1, 1), positions[:, -1:] + 1 + step
            made = graphs.step(latest, position, length, step, (keys, values), step, start)
            keys = [torch.cat(pair, dim=2) for pair in zip(keys, made.keys, strict=True)]
            values = [torch.cat(pair, dim=2) for pair in zip(values, made.values, strict=True)]
            rows.append(made.logits[0, -1])
            given.append(made.given)
    kept = final_kept(all_kept(seen, read), 1, graphs.geometry.total)
    best = torch.stack(rows).topk(2, dim=-1)
    return Reference(
        kept=kept[0],
        features=seen.features[0],
        logits=rows[0],
        tokens=best.indices[:, 0],
        margins=best.values[:, 0] - best.values[:, 1],
        given={name: torch.cat([one[name] for one in given]) for name in given[0]},
    )


def save_golden(golden: Golden, geometry: Geometry, path: Path) -> None:
    """pixel_values, input_ids (right-padded, all image tokens), prompt_lengths, kept_indices, image_features, tokens,
    logits, each with one row per sample, as `.npz`."""
    ids = [sample.ids(geometry.image_token_id, geometry.total) for sample in golden.samples]
    longest = max(len(row) for row in ids)
    arrays: dict[str, Any] = {
        "pixel_values": torch.cat([sample.pixel_values for sample in golden.samples]).numpy(),
        "input_ids": np.array([row + [geometry.pad_token_id] * (longest - len(row)) for row in ids], np.int64),
        "prompt_lengths": np.array([len(row) for row in ids], np.int64),
        "kept_indices": torch.stack([one.kept for one in golden.pruned]).numpy(),
        "image_features": torch.stack([one.features for one in golden.pruned]).numpy(),
        "tokens": torch.stack([one.tokens for one in golden.pruned]).numpy(),
        "logits": torch.stack([one.logits for one in golden.pruned]).numpy(),
    }
    np.savez(path, **arrays)
