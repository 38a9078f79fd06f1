"""Calibration of one artifact: samples in, frozen counts out, and what freezing cost on samples held out."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor

from tokcarve.passes import families
from tokcarve.passes.calibrate import Observed, agreement, frozen_counts, observe, tokens_at
from tokcarve.passes.checkpoint import Checkpoint
from tokcarve.passes.errors import CheckError, MethodError, ModelError, SampleError
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.inputs.samples import SampleSet, open_samples
from tokcarve.passes.stage import Fit, Frozen, Method
from tokcarve.recipes.carve import rewritten
from tokcarve.recipes.manifest import CheckRecord
from tokcarve.recipes.schema import Calibration

__all__ = ["Calibrated", "calibrate", "calibration_samples", "pixel_batches"]

BATCH = 4
CAPTURE_TOLERANCE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """What was fixed, the record of it for the manifest, and the checks made on the way."""

    frozen: Frozen
    record: dict[str, Any]
    checks: tuple[CheckRecord, ...]


def calibrate(
    model: Any,
    method: Method,
    tokens: int,
    samples: SampleSet,
    checkpoint: Checkpoint,
    progress: Callable[[str, int, int], None] | None = None,
) -> Calibrated:
    """Freeze what `method` decides per image, or learns from samples, into constants.

    Three quarters of the samples calibrate, the last quarter is held out to measure what freezing costs. CheckError
    when the captured graph is not the checkpoint, MethodError for a method that leaves nothing open.
    """
    graphs = families.capture(model)
    tell = progress if progress is not None else lambda what, done, total: None
    work = _Work(graphs, tokens, samples, checkpoint, tell)
    check = _check_capture(model, graphs, next(pixel_batches(samples, checkpoint)))
    dynamic, fit = method.dynamic(), method.fit(graphs.geometry, tokens)
    if fit is not None:
        frozen, record = _fitted(work, fit)
    elif dynamic is not None:
        frozen, record = _counted(work, method, dynamic)
    else:
        raise MethodError(f"{method.facts.title} leaves nothing open to calibrate with these parameters")
    about = {
        "samples": samples.source,
        "sha256": samples.sha256,
        "count": len(samples),
        "seed": samples.seed,
        "skipped": list(samples.skipped),
    }
    return Calibrated(frozen=frozen, record=about | record, checks=(check,))


@dataclass(frozen=True)
class _Work:
    graphs: TokenGraphs
    tokens: int
    samples: SampleSet
    checkpoint: Checkpoint
    tell: Callable[[str, int, int], None]

    @property
    def first(self) -> int:
        """The first sample that is held out."""
        return len(self.samples) - len(self.samples) // 4

    def batches(self) -> Iterator[tuple[Tensor, int]]:
        """Pixels and how many samples came before, telling of progress."""
        done = 0
        for pixels in pixel_batches(self.samples, self.checkpoint):
            yield pixels, done
            done += pixels.shape[0]
            self.tell("calibrating", done, len(self.samples))


def _counted(work: _Work, method: Method, dynamic: Method) -> tuple[Frozen, dict[str, Any]]:
    exact = rewritten(work.graphs, dynamic, work.tokens, None)
    observed: list[Observed] = []
    for pixels, _ in work.batches():
        observed.extend(observe(exact, pixels))
    first = work.first
    counts = frozen_counts(observed[:first], work.tokens)
    fixed = Frozen(counts=counts)
    carved = rewritten(work.graphs, method, work.tokens, fixed)
    fit = agreement(carved, _held_out(work.samples, work.checkpoint, observed, first))
    spread = {site: _spread([image.counts[site] for image in observed[:first]]) for site in counts}
    return fixed, {"counts": counts, "spread": spread, "agreement": asdict(fit)}


def _fitted(work: _Work, fit: Fit) -> tuple[Frozen, dict[str, Any]]:
    for pixels, done in work.batches():
        learning = pixels[: max(0, work.first - done)]
        if learning.shape[0]:
            fit.add(tokens_at(work.graphs, fit.site, learning))
    tensors, losses, done = fit.solve(), list[float](), 0
    # read again, so that memory does not grow with the samples held out
    for pixels in pixel_batches(work.samples, work.checkpoint):
        held, done = pixels[max(0, work.first - done) :], done + pixels.shape[0]
        losses.extend(fit.loss(tensors, tokens_at(work.graphs, fit.site, image.unsqueeze(0))) for image in held)
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    return Frozen(tensors=tensors), {"tensors": shapes, "held_out_loss": sum(losses) / len(losses)}


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
