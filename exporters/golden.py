"""Golden samples: seeded images and prompts, and what torch makes of them, one by one and without padding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tokcarve.exporters.device.compare import TOLERANCES, Asked, Said
from tokcarve.exporters.modules import final_kept
from tokcarve.passes.asking import Question, ask
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.graph import TokenGraphs, all_kept, thread
from tokcarve.passes.router import Router

__all__ = ["Golden", "Reference", "asked", "make_samples", "reference", "said", "save_golden", "stable"]

NEW_TOKENS = 16
"""Greedy tokens per sample."""

_NUDGE = 1e-5
_NUDGES = 3
# where one image is ambiguous many are, and a few changes let many of those through
_WARY_NUDGES = 12
_ATTEMPTS = 8
# of the largest feature: a nudge alone moves features by half of this at most, merging elsewhere by much more
_MERGED_ELSEWHERE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What torch says of one sample: kept [keep] original patch ids, features [keep, hidden], logits [vocab] of the
    last prompt row, greedy tokens [new] past any stop token, and margins [new]: best logit minus second best; given
    [new, ...] by name: what a method tells whoever runs it; open bool [total]: patches of which rounding to the dtype
    of the graphs decides whether they are kept."""

    kept: Tensor
    features: Tensor
    logits: Tensor
    tokens: Tensor
    margins: Tensor
    given: Mapping[str, Tensor]
    open: Tensor


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Samples with their references from the pruned and from the unpruned model; `skipped` images were ambiguous."""

    samples: tuple[Question, ...]
    pruned: tuple[Reference, ...]
    plain: tuple[Reference, ...]
    skipped: int


def make_samples(
    graphs: TokenGraphs, rounded: TokenGraphs | None = None, *, count: int, max_text: int, seed: int = 0
) -> tuple[tuple[Question, ...], int]:
    """`count` samples whose text lengths go from short to exactly `max_text`, and how many images were passed over.

    An image is passed over when changes of its pixels by 1e-5 change what is kept or merged: there two correct programs
    may differ. Three changes are tried, and once an image is found that way, all begin again with twelve. It is passed
    over too when the same model in the dtype of the graphs, `rounded`, keeps or merges something else of it, or
    of it with its pixels changed by what that dtype can tell apart. After eight in a row the next one is taken as it
    is, and once rounding was why, those that follow are too: in a large model it nearly always is.
    """
    samples, skipped, ambiguous = _draw(graphs, rounded, count, max_text, seed, _NUDGES)
    if ambiguous:
        samples, skipped, _ = _draw(graphs, rounded, count, max_text, seed, _WARY_NUDGES)
    return samples, skipped


def _draw(
    graphs: TokenGraphs, rounded: TokenGraphs | None, count: int, max_text: int, seed: int, nudges: int
) -> tuple[tuple[Question, ...], int, bool]:
    """The samples, how many images were passed over, and whether any change of the pixels was why; fewer than
    `_WARY_NUDGES` give up at the first that was."""
    generator = torch.Generator().manual_seed(seed)
    samples, skipped, ambiguous = [], 0, False
    for i in range(count):
        pixels = _picture(graphs.geometry, generator)
        text = _text(graphs.geometry, max(1, max_text * (i + 1) // count), generator)
        state = {name: torch.rand(1, thread(graphs.vision).count, generator=generator) for name in graphs.asks}
        for _ in range(_ATTEMPTS):
            sample = _question(pixels, text, state)
            swayed = rounded is not None and bool(_open(graphs, rounded, sample, once=True).any())
            if not swayed and stable(graphs, sample, generator, nudges):
                break
            ambiguous |= not swayed
            if ambiguous and nudges < _WARY_NUDGES:
                return (), skipped, True
            pixels, skipped = _picture(graphs.geometry, generator), skipped + 1
        else:
            rounded = None if swayed else rounded
        samples.append(_question(pixels, text, state))
    return tuple(samples), skipped, ambiguous


def _question(pixels: Tensor, text: list[int], state: Mapping[str, Tensor]) -> Question:
    split = min(3, len(text) // 2)
    return Question(pixel_values=pixels, before=tuple(text[:split]), after=tuple(text[split:]), state=state)


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


def stable(graphs: TokenGraphs, sample: Question, generator: torch.Generator, nudges: int = _NUDGES) -> bool:
    """Whether `nudges` changes of the pixels by 1e-5 leave what is kept and merged as it is."""
    pixels = sample.pixel_values
    with torch.no_grad():
        made, kept = _outcome(graphs, sample, pixels)
        for _ in range(nudges if kept else 0):
            nudged = pixels + _NUDGE * torch.randn(pixels.shape, generator=generator)
            moved, again = _outcome(graphs, sample, nudged)
            if not all(torch.equal(kept[site], again[site]) for site in kept):
                return False
            if float((moved - made).abs().max()) > _MERGED_ELSEWHERE * float(made.abs().max()):
                return False
    return True


def _open(graphs: TokenGraphs, rounded: TokenGraphs | None, sample: Question, *, once: bool = False) -> Tensor:
    """bool [total]: patches that `rounded` keeps and `graphs` do not, or the other way round, in any of a few runs,
    with `once` up to the first that shows one; all where the same ones hold something else, merged elsewhere. Both may
    be the same graphs: then only changes of the pixels tell."""
    found = torch.zeros(graphs.geometry.total, dtype=torch.bool)
    if rounded is None:
        return found
    generator = torch.Generator().manual_seed(len(sample.after))
    kind: Any = rounded.parts.embed_tokens.weight.dtype
    unit, limit = max(_NUDGE, torch.finfo(kind).eps), TOLERANCES[str(kind).removeprefix("torch.")]
    with torch.no_grad():
        made, index = _outcome(graphs, sample, sample.pixel_values)
        wanted, pixels = _kept(graphs, index), sample.pixel_values
        for turn in range(1 + (_WARY_NUDGES if rounded is graphs else _NUDGES)):
            nudged = pixels + min(turn, 1) * unit * torch.randn(pixels.shape, generator=generator)
            other, index = _outcome(rounded, sample, nudged)
            differ = _kept(graphs, index) != wanted
            found |= differ
            if index and not differ.any() and float((other - made).abs().max()) > limit * float(made.abs().max()):
                found[:] = True
            if once and found.any():
                break
    return found


def _kept(graphs: TokenGraphs, kept: Mapping[str, Tensor]) -> Tensor:
    """bool [total]: what is left behind the last stage."""
    left = torch.zeros(graphs.geometry.total, dtype=torch.bool)
    index = final_kept(kept, 1, graphs.geometry.total)[0]
    left[index[index >= 0]] = True  # -1 is the [CLS] row
    return left


def _outcome(graphs: TokenGraphs, sample: Question, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """What merging elsewhere would change, the features or where the language model merges the logits; and the ids."""
    image = graphs.geometry.image_token_id
    seen = graphs.see(pixels, *sample.prompt(image, 1))
    if not graphs.language_inputs:
        return seen.features, seen.kept
    ids, length = sample.prompt(image, seen.features.shape[1])
    read, _ = graphs.read(ids, seen, length, sample.state)
    return read.logits[0, -1], all_kept(seen, read)


def reference(graphs: TokenGraphs, sample: Question, new: int, rounded: TokenGraphs | None = None) -> Reference:
    """What `graphs` make of one sample in torch: no padding, growing caches, nothing shared with the exported form;
    `rounded` as for `make_samples`, or `graphs` once more where float32 itself may decide what is kept."""
    said = ask(graphs, sample, new)
    kept = final_kept(all_kept(said.seen, said.read), 1, graphs.geometry.total)
    best = said.logits.topk(2, dim=-1)
    return Reference(
        kept=kept[0],
        features=said.seen.features[0],
        logits=said.logits[0],
        tokens=best.indices[:, 0],
        margins=best.values[:, 0] - best.values[:, 1],
        given=said.given,
        open=_open(graphs, rounded, sample),
    )


def asked(sample: Question) -> Asked:
    """A sample as the device is asked it."""
    state = {name: one.numpy() for name, one in sample.state.items()}
    return Asked(pixels=sample.pixel_values.numpy(), before=sample.before, after=sample.after, state=state)


def said(references: Sequence[Reference]) -> list[Said]:
    """What torch said, as the device compares itself with it."""
    return [
        Said(
            kept=one.kept.numpy(),
            features=one.features.numpy(),
            logits=one.logits.numpy(),
            tokens=one.tokens.numpy(),
            margins=one.margins.numpy(),
            given={name: tensor.numpy() for name, tensor in one.given.items()},
            open=one.open.numpy(),
        )
        for one in references
    ]


def save_golden(golden: Golden, geometry: Geometry, path: Path, router: Router | None = None) -> None:
    """What `compare.read_golden` reads, as `.npz`, one row per sample: pixel_values, input_ids (right-padded, all image
    tokens), prompt_lengths, state.NAME; kept_indices, image_features, tokens, margins, logits, given.NAME of the carved
    model, and with the prefix plain. those of the whole one; losses [budgets] that a router predicts."""
    ids = [sample.ids(geometry.image_token_id, geometry.total) for sample in golden.samples]
    longest = max(len(row) for row in ids)
    arrays: dict[str, Any] = {
        "pixel_values": torch.cat([sample.pixel_values for sample in golden.samples]).numpy(),
        "input_ids": np.array([row + [geometry.pad_token_id] * (longest - len(row)) for row in ids], np.int64),
        "prompt_lengths": np.array([len(row) for row in ids], np.int64),
    }
    for name in golden.samples[0].state:
        arrays[f"state.{name}"] = torch.cat([sample.state[name] for sample in golden.samples]).numpy()
    for side, references in (("", golden.pruned), ("plain.", golden.plain)):
        found = said(references)
        arrays |= {
            f"{side}kept_indices": np.stack([one.kept for one in found]),
            f"{side}image_features": np.stack([one.features for one in found]),
            f"{side}tokens": np.stack([one.tokens for one in found]),
            f"{side}margins": np.stack([one.margins for one in found if one.margins is not None]),
            f"{side}logits": np.stack([one.logits for one in found]),
            f"{side}open": np.stack([one.open for one in found if one.open is not None]),
        }
        arrays |= {f"{side}given.{name}": np.stack([one.given[name] for one in found]) for name in found[0].given}
    if router is not None:
        with torch.no_grad():
            arrays["losses"] = torch.cat([router(sample.pixel_values) for sample in golden.samples]).numpy()
    np.savez(path, **arrays)
