"""What an export for TensorRT may not be, told from its artifact and its options before a weight is read."""

import importlib.util
from collections.abc import Iterator

from tokcarve.exporters.device.boards import RELEASES, Target, find_target, opset_refused, precision_refused
from tokcarve.exporters.faces.kind import Request
from tokcarve.exporters.lint_rules import TOPK_LIMIT
from tokcarve.exporters.onnx import OPSET, OPSETS
from tokcarve.passes.errors import ExportError
from tokcarve.passes.flops import kv_bytes, weight_parameters
from tokcarve.recipes.manifest import Manifest

__all__ = ["build_peak", "check_limits", "memory_refused", "topk_refused"]

_TRT = "trt"


def check_limits(manifest: Manifest, request: Request, precision: str = "float32", bytes_each: float = 4.0) -> None:
    """Refuses what the opset, the target and TensorRT's own limits leave impossible: the first as an ExportError.

    `precision` is that of the weights, with `bytes_each` per number on average.
    """
    if request.opset not in OPSETS:
        raise ExportError(
            f"--opset {request.opset} is not one of {OPSETS[0]} to {OPSETS[-1]}, which graphs can be written in and "
            f"were built from; {OPSET} is what every supported TensorRT reads"
        )
    target = find_target(request.target) if request.target is not None else None
    if target is not None and _TRT not in request.faces:
        raise ExportError(
            f"--target {target.text} is about TensorRT, and what is asked for is --face {','.join(request.faces)}; "
            "add --trt, or leave --target out"
        )
    if _TRT in request.faces:
        releases = target.releases if target is not None else RELEASES.values()
        for refusal in (
            opset_refused(releases, request.opset),
            topk_refused(manifest),
            *(_target_refused(target, manifest, request, precision, bytes_each) if target is not None else ()),
        ):
            if refusal is not None:
                raise ExportError(refusal)


def _target_refused(
    target: Target, manifest: Manifest, request: Request, precision: str, bytes_each: float
) -> Iterator[str | None]:
    yield precision_refused(target, precision)
    yield memory_refused(target, manifest, request, bytes_each)
    if target.ahead and importlib.util.find_spec("tensorrt_rtx") is None:
        yield (
            f"--target {target.text}: its engines are built here, on the CPU, by tensorrt-rtx, which is not installed; "
            "pip install 'tokcarve[check]'"
        )


def topk_refused(manifest: Manifest) -> str | None:
    """Which stage keeps more tokens than TensorRT's TopK can, and the ways out; None where none does.

    Stages that merge are left to the lint, which sees what counts they choose by.
    """
    for one in (*manifest.schedule, *(stage for budget in manifest.budgets for stage in budget.schedule)):
        if one.how in ("choose", "mask") and one.keep > TOPK_LIMIT:
            return (
                f"the stage at {one.site} chooses {one.keep} of {one.total} tokens, and TensorRT's TopK takes at most "
                f"{TOPK_LIMIT}; compress to {TOPK_LIMIT} tokens or fewer, choose per tile with a method that does, or "
                "export for ONNX Runtime alone (--face ort), which has no such limit"
            )
    return None


def build_peak(weight_bytes: int) -> float:
    """GiB of memory that building an engine takes at its peak, estimated and not measured.

    A builder holds the weights about four times over: in the file, parsed, while it chooses kernels, and in the engine.
    """
    return 4 * weight_bytes / 2**30 + 0.5


def memory_refused(target: Target, manifest: Manifest, request: Request, bytes_each: float) -> str | None:
    """Why the largest board of the kind has too little memory to build the engines or to hold all four and the caches;
    None where it has enough, or where boards differ too much to tell."""
    if not target.board.memory:
        return None
    most, text = target.board.memory[0], manifest.geometry.text
    count = weight_parameters(manifest.geometry)
    engines = {
        "vision": count["encoder"] + count["connector"],
        "embedding": count["embedding"],
        "prefill": count["language"] + count["head"],
        "decode": count["language"] + count["head"],
    }
    largest = max(engines, key=lambda name: engines[name])
    build = build_peak(round(bytes_each * engines[largest]))
    rows = [kept + request.max_text + request.max_new for kept in manifest.kv_rows]
    caches = request.batch * kv_bytes(text, rows, 4)
    run = (bytes_each * sum(engines.values()) + caches) / 2**30
    if max(build, run) <= most:
        return None
    what = (
        f"building the engine of {largest} takes about {build:.1f} GiB at its peak"
        if build > most
        else f"four engines and the caches of {request.batch} prompts take about {run:.1f} GiB"
    )
    return (
        f"--target {target.text}: {what} (estimated from {bytes_each * engines[largest] / 2**30:.1f} GiB of weights), "
        f"and {target.board.title} has at most {most} GiB; take a smaller model or batch, fewer bytes per weight, or a "
        "board with more memory"
    )
