"""ONNX Runtime against what was recorded of torch: kept sets, features, logits, tokens. On a device too: no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokcarve.exporters.device.pipeline import Pipeline
from tokcarve.exporters.device.playing import Asked, play
from tokcarve.exporters.device.session import as_floats
from tokcarve.passes.errors import ArtifactError

__all__ = [
    "TOLERANCES",
    "Asked",
    "Check",
    "Floats",
    "Said",
    "check_numbers",
    "check_power",
    "check_said",
    "close",
    "read_golden",
    "same_tokens",
    "uncompared",
]

TOLERANCES = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 5e-2}
"""Largest difference from torch in float32, as a share of the largest value compared (but of at least 1), by the dtype
that graphs compute in; quantised weights have none of their own, for torch is given what they are read as."""

Floats = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class Check:
    """One comparison: `value` is what was measured and `tolerance` what it may be, where there are such numbers."""

    name: str
    passed: bool
    detail: str
    value: float | None = None
    tolerance: float | None = None


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a model makes of a sample: kept [keep] patch ids, features [tokens, hidden], logits [vocab] of the last
    prompt row, tokens [new] past any stop, margins [new] (best logit minus second best; nothing for what is compared
    with a reference), given [new, ...] by name, what a method tells, and open bool [total]: patches of which rounding
    decides whether they are kept, in torch too; placed: whether vision gives visual tokens the positions that embedding
    gives them."""

    kept: NDArray[np.int64]
    features: Floats
    logits: Floats
    tokens: NDArray[np.int64]
    margins: Floats | None = None
    given: Mapping[str, Floats] = field(default_factory=dict)
    placed: bool = True
    open: NDArray[np.bool_] | None = None


def read_golden(path: Path, image: int) -> tuple[list[Asked], list[Said], list[Said]]:
    """The samples of a golden file with what torch made of them, carved and whole; `image` is the id of image tokens.

    ArtifactError for a file that is none.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = dict(stored)
        count = len(arrays["pixel_values"])
        asked = [_asked(arrays, i, image) for i in range(count)]
        carved, whole = ([_said(arrays, side, i) for i in range(count)] for side in ("", "plain."))
        return asked, carved, whole
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ArtifactError(f"{path} holds no golden samples ({error}); export again with `tokcarve export`") from error


def _asked(arrays: Mapping[str, Any], i: int, image: int) -> Asked:
    ids = arrays["input_ids"][i, : arrays["prompt_lengths"][i]]
    places = np.flatnonzero(ids == image)
    state = {name.removeprefix("state."): one[i : i + 1] for name, one in arrays.items() if name.startswith("state.")}
    before, after = ids[: places[0]].tolist(), ids[places[-1] + 1 :].tolist()
    return Asked(pixels=arrays["pixel_values"][i : i + 1], before=tuple(before), after=tuple(after), state=state)


def _said(arrays: Mapping[str, Any], side: str, i: int) -> Said:
    told = f"{side}given."
    return Said(
        kept=arrays[f"{side}kept_indices"][i],
        features=arrays[f"{side}image_features"][i],
        logits=arrays[f"{side}logits"][i],
        tokens=arrays[f"{side}tokens"][i],
        margins=arrays[f"{side}margins"][i],
        given={name.removeprefix(told): one[i] for name, one in arrays.items() if name.startswith(told)},
        open=arrays[f"{side}open"][i],
    )


def check_numbers(
    pipeline: Pipeline, samples: Sequence[Asked], expected: Sequence[Said], *, side: str, dtype: str = "float32"
) -> list[Check]:
    """Kept sets, positions, image features, logits of the last row, greedy tokens, and what a method tells, on all
    samples.

    The number of samples is a multiple of the exported batch. `side` ("pruned", "unpruned") goes into the names. Where
    other patches are kept and rounding explains each of them, only the sets of that sample can be compared; where this
    is so of every sample, `uncompared` finds it.
    """
    batch, new, given = pipeline.record.batch, len(expected[0].tokens), tuple(expected[0].given)
    made = list[Said]()
    for start in range(0, len(samples), batch):
        made += _answer(pipeline, samples[start : start + batch], new, given)
    misplaced = [i for i, one in enumerate(made) if not one.placed]
    places = f"sample {misplaced[0]}: other" if misplaced else f"the same on {len(samples)} samples"
    placed = Check(
        name=f"{side}: positions",
        passed=not misplaced,
        detail=f"{places} from vision's visual_position_ids and in embedding's position_ids",
    )
    return [*check_said(made, expected, side=side, dtype=dtype), placed]


def check_said(made: Sequence[Said], expected: Sequence[Said], *, side: str, dtype: str = "float32") -> list[Check]:
    """What was made of samples against what torch made of them."""
    given = tuple(expected[0].given)
    pairs = list(zip(made, expected, strict=True))
    swapped = [set(m.kept.tolist()) ^ set(e.kept.tolist()) for m, e in pairs]
    kept = _same_kept(f"{side}: kept indices", swapped, expected)
    if kept.passed:
        sure = [not other and not _merged_elsewhere(one) for other, one in zip(swapped, expected, strict=True)]
        pairs = [pair for pair, numbers in zip(pairs, sure, strict=True) if numbers]
    if not pairs:
        return [kept]
    return [
        kept,
        close(f"{side}: image features", [(m.features, e.features) for m, e in pairs], dtype),
        close(f"{side}: logits", [(m.logits, e.logits) for m, e in pairs], dtype),
        same_tokens(f"{side}: greedy tokens", pairs, TOLERANCES[dtype]),
        *(close(f"{side}: {one}", [(m.given[one], e.given[one]) for m, e in pairs], dtype) for one in given),
    ]


def _same_kept(name: str, swapped: Sequence[set[int]], expected: Sequence[Said]) -> Check:
    """`swapped` are the patches of each sample that one side keeps and the other does not."""
    differ = [i for i, other in enumerate(swapped) if other]
    wrong = [i for i in differ if not swapped[i] <= _open(expected[i])]
    count = f"{len(swapped)} samples"
    if wrong:
        return Check(name=name, passed=False, detail=f"{len(wrong)} of {count} differ, first sample {wrong[0]}")
    if not differ:
        return Check(name=name, passed=True, detail=f"equal on {count}")
    most = max(len(swapped[i]) for i in differ)
    detail = f"equal on {len(swapped) - len(differ)} of {count}; up to {most} patches differ, all within rounding"
    return Check(name=name, passed=True, detail=detail)


def _merged_elsewhere(one: Said) -> bool:
    """Whether rounding decides so much of a sample that its numbers say nothing."""
    return one.open is not None and bool(one.open.all())


def _open(one: Said) -> set[int]:
    return set() if one.open is None else set(np.flatnonzero(one.open).tolist())


def uncompared(checks: Sequence[Check], side: str) -> tuple[str, ...]:
    """What the checks of a side leave open."""
    if not checks[0].passed or any(check.name == f"{side}: logits" for check in checks):
        return ()
    return (f"{side}: rounding decides what is kept of every golden sample, so no number was compared behind it",)


def _answer(pipeline: Pipeline, samples: Sequence[Asked], new: int, given: Sequence[str]) -> list[Said]:
    """What the graphs make of one exported batch."""
    played = play(pipeline, samples, new)
    seen, first, columns = played.seen, played.steps[0], played.tokens
    told = {name: np.stack([one[name] for one in played.steps], axis=1) for name in given}
    kept = pipeline.kept(seen, first)
    logits, features = first["logits"], as_floats(seen["image_features"])
    return [
        Said(
            kept=kept[i],
            features=features[i],
            logits=logits[i, 0],
            tokens=columns[i],
            given={name: one[i] for name, one in told.items()},
            placed=_placed(seen["visual_position_ids"][i], played.embedded["position_ids"][i], len(samples[i].before)),
        )
        for i in range(len(samples))
    ]


def _placed(visual: NDArray[np.int64], positions: NDArray[np.int64], start: int) -> bool:
    """Whether `visual` [tokens], counted from the image's first position, is what `positions` [rows] has there."""
    return bool(np.array_equal(start + visual, positions[start : start + len(visual)]))


def close(name: str, pairs: Sequence[tuple[Floats, Floats]], dtype: str) -> Check:
    """Whether every first is near its second, torch's, by the tolerance of `dtype`."""
    worst = max(_difference(found, expected) for found, expected in pairs)
    limit = TOLERANCES[dtype]
    detail = f"largest difference from torch {worst:.1e}, allowed {limit:.0e} of the largest value"
    return Check(name=name, passed=worst <= limit, detail=detail, value=worst, tolerance=limit)


def _difference(found: Floats, expected: Floats) -> float:
    """Largest absolute difference over the largest expected value (or 1); infinite for other shapes or NaN."""
    if found.shape != expected.shape:
        return float("inf")
    difference = float(np.abs(found.astype(np.float64) - expected).max()) / max(1.0, float(np.abs(expected).max()))
    return difference if np.isfinite(difference) else float("inf")


def same_tokens(name: str, pairs: Sequence[tuple[Said, Said]], tolerance: float) -> Check:
    """Whether every first says the tokens of its second, torch's, up to a choice between two that are as good."""
    compared, ties = 0, 0
    for i, (made, one) in enumerate(pairs):
        assert one.margins is not None
        for step, (ours, theirs) in enumerate(zip(made.tokens.tolist(), one.tokens.tolist(), strict=True)):
            compared += 1
            if ours == theirs:
                continue
            if float(one.margins[step]) > 2 * tolerance * max(1.0, float(np.abs(one.logits).max())):
                detail = f"sample {i}, token {step}: {ours}, torch says {theirs}"
                return Check(name=name, passed=False, detail=detail)
            # two tokens closer than the tolerance: either is right, and what follows cannot be compared
            ties += 1
            break
    detail = f"{compared - ties} tokens equal" + (f", {ties} ties" if ties else "")
    return Check(name=name, passed=compared > ties, detail=detail)


def check_power(carved: Sequence[Said], plain: Sequence[Said], dtype: str = "float32") -> Check:
    """Whether the comparison could have failed: the unpruned model's logits must differ by more than the tolerance."""
    least = min(_difference(one.logits, other.logits) for one, other in zip(plain, carved, strict=True))
    limit = TOLERANCES[dtype]
    detail = f"the unpruned model's logits differ by {least:.1e} or more, over the tolerance of {limit:.0e}"
    if least <= limit:
        detail = f"on some sample the unpruned model's logits differ by only {least:.1e}"
    return Check(name="power", passed=least > limit, detail=detail, value=least, tolerance=limit)
