"""Calibration of one artifact: samples in, frozen counts out, and what freezing cost on samples held out."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor

from tokcarve.passes import families
from tokcarve.passes.calibrate import Observed, agreement, frozen_counts, observe
from tokcarve.passes.checkpoint import Checkpoint
from tokcarve.passes.errors import CheckError, ModelError, SampleError
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.samples import SampleSet, open_samples
from tokcarve.passes.stage import Method
from tokcarve.recipes.carve import rewritten
from tokcarve.recipes.manifest import CheckRecord
from tokcarve.recipes.schema import Calibration

__all__ = ["Calibrated", "calibrate", "calibration_samples", "pixel_batches"]

BATCH = 4
CAPTURE_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """counts {site: keep}, the record for the manifest, and the checks made on the way."""

    counts: dict[str, int]
    record: dict[str, Any]
    checks: tuple[CheckRecord, ...]


def calibrate(
    model: Any,
    method: Method,
    dynamic: Method,
    tokens: int,
    samples: SampleSet,
    checkpoint: Checkpoint,
    progress: Callable[[str, int, int], None] | None = None,
) -> Calibrated:
    """Freeze what `dynamic` decides per image into constant counts for `method`.

    Three quarters of the samples calibrate, the last quarter is held out to measure the agreement. CheckError when the
    captured graph is not the checkpoint.
    """
    graphs = families.capture(model)
    exact = rewritten(graphs, dynamic, tokens, None)
    observed: list[Observed] = []
    check: CheckRecord | None = None
    for pixels in pixel_batches(samples, checkpoint):
        check = check or _check_capture(model, graphs, pixels)
        observed.extend(observe(exact, pixels))
        if progress is not None:
            progress("calibrating", len(observed), len(samples))
    first = len(samples) - len(samples) // 4
    counts = frozen_counts(observed[:first], tokens)
    frozen = rewritten(graphs, method, tokens, counts)
    fit = agreement(frozen, _held_out(samples, checkpoint, observed, first))
    record = {
        "samples": samples.source,
        "sha256": samples.sha256,
        "count": len(samples),
        "seed": samples.seed,
        "skipped": list(samples.skipped),
        "counts": counts,
        "spread": {site: _spread([image.counts[site] for image in observed[:first]]) for site in counts},
        "agreement": asdict(fit),
    }
    assert check is not None
    return Calibrated(counts=counts, record=record, checks=(check,))


def calibration_samples(asked: Calibration) -> SampleSet:
    """The sample set that was asked for; SampleError for one with fewer than four images."""
    samples = open_samples(asked.samples, count=asked.count, seed=asked.seed)
    if len(samples) < 4:
        raise SampleError(f"sample set {asked.samples} holds {len(samples)} images; calibration needs 4 or more")
    return samples


def _spread(values: list[int]) -> list[int]:
    return [min(values), max(values)]


def _held_out(
    samples: SampleSet, checkpoint: Checkpoint, observed: list[Observed], first: int
) -> Iterator[tuple[Tensor, list[Observed]]]:
    start = 0
    for pixels in pixel_batches(samples, checkpoint):
        end, begin = start + pixels.shape[0], max(start, first)
        if begin < end:
            yield pixels[begin - start :], observed[begin:end]
        start = end


def pixel_batches(samples: SampleSet, checkpoint: Checkpoint) -> Iterator[Tensor]:
    """Pixels float32 [up to 4, 3, height, width] as the checkpoint's own image processor makes them, streamed."""
    try:
        processor: Any = AutoImageProcessor.from_pretrained(  # type: ignore[no-untyped-call]
            checkpoint.path, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{checkpoint.path} has no image processor that can be read; add its preprocessor_config.json"
        ) from error
    images = []
    for sample in samples:
        images.append(sample.image)
        if len(images) == BATCH:
            yield processor(images=images, return_tensors="pt")["pixel_values"]
            images = []
    if images:
        yield processor(images=images, return_tensors="pt")["pixel_values"]


@torch.no_grad()
def _check_capture(model: Any, graphs: TokenGraphs, pixels: Tensor) -> CheckRecord:
    expected = torch.stack(list(model.get_image_features(pixel_values=pixels).pooler_output))
    features, _ = graphs.vision(pixels)
    worst = float((features - expected).abs().max())
    if worst > CAPTURE_TOLERANCE:
        raise CheckError(
            f"the captured vision graph differs from the checkpoint by {worst:.1e}, allowed {CAPTURE_TOLERANCE:.0e}; "
            "this is a fault of tokcarve, please report the checkpoint"
        )
    return CheckRecord(
        name="captured vision graph equals the checkpoint",
        passed=True,
        detail=f"largest difference {worst:.1e}, allowed {CAPTURE_TOLERANCE:.0e}, {pixels.shape[0]} images",
    )
