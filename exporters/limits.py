"""What an export may not be, told from its artifact and its options before a weight is read."""

import importlib.util
import shutil
from pathlib import Path

from tokcarve.exporters.device.boards import RELEASES, Target, find_target, opset_refused, precision_refused
from tokcarve.exporters.engines import GIB, engine_bytes, room
from tokcarve.exporters.faces.kind import ALL, Request
from tokcarve.exporters.lint_rules import TOPK_LIMIT
from tokcarve.exporters.onnx import OPSET, OPSETS
from tokcarve.exporters.precision import bytes_each, needed_opset
from tokcarve.exporters.rows import check_rows
from tokcarve.passes.errors import ExportError
from tokcarve.passes.flops import weight_parameters
from tokcarve.recipes.manifest import Manifest

__all__ = [
    "check_limits",
    "check_request",
    "check_room",
    "memory_refused",
    "topk_refused",
    "trt_refused",
]

_TRT = "trt"


def check_request(manifest: Manifest, request: Request) -> None:
    """Raises ExportError for sizes that the model cannot serve, and for what `check_limits` refuses."""
    check_rows(manifest.geometry, batch=request.batch, max_text=request.max_text, max_new=request.max_new)
    check_limits(manifest, request)


def check_room(weight_bytes: int, directory: Path) -> None:
    """Raises ExportError where the disk of `directory` has no room for weights of that size and the graphs."""
    wanted = int(1.05 * weight_bytes) + 2**24
    free = shutil.disk_usage(directory).free
    if free < wanted:
        raise ExportError(
            f"the export needs {wanted / 2**30:.1f} GiB in {directory}, and {free / 2**30:.1f} GiB are free; "
            "free some space or move the artifact to a larger disk"
        )


def check_limits(manifest: Manifest, request: Request) -> None:
    """Raises ExportError for an opset that is not written, and for a target that is unknown, not wanted by any face, or
    not able to carry the artifact."""
    if request.opset not in OPSETS:
        raise ExportError(
            f"--opset {request.opset} is not one of {OPSETS[0]} to {OPSETS[-1]}, which graphs can be written in and "
            f"were built from; {OPSET} is what every supported TensorRT reads"
        )
    if request.target is None:
        return
    find_target(request.target)
    if not {_TRT, ALL} & set(request.faces):
        raise ExportError(
            f"--target {request.target} is about TensorRT, and what is asked for is --face {','.join(request.faces)}; "
            "add --trt, or leave --target out"
        )
    refusal = trt_refused(manifest, request)
    if refusal is not None:
        raise ExportError(refusal)


def trt_refused(manifest: Manifest, request: Request) -> str | None:
    """Why TensorRT cannot carry the artifact as asked for, on the target where one is named; None where it can."""
    target = find_target(request.target) if request.target is not None else None
    if target is None:
        # what a precision needs is left to the releases that read it; an opset that was asked for is for all of them
        opset_why = opset_refused(RELEASES.values(), request.opset)
    else:
        opset_why = opset_refused(target.releases, *_opset(request))
    refusals = [opset_why, topk_refused(manifest)]
    if target is not None:
        least = bytes_each(request.precision)
        refusals += [precision_refused(target, request.precision), memory_refused(target, manifest, request, least)]
        if target.ahead and importlib.util.find_spec("tensorrt_rtx") is None:
            refusals.append(
                f"--target {target.text}: its engines are built here, on the CPU, by tensorrt-rtx, which is not "
                "installed; pip install 'tokcarve[check]'"
            )
    return next((refusal for refusal in refusals if refusal is not None), None)


def _opset(request: Request) -> tuple[int, str | None]:
    """The opset that graphs will be in, and which precision asks for it where `--opset` does not."""
    needed = needed_opset(request.precision, _TRT)
    if needed <= request.opset:
        return request.opset, None
    return needed, f"--precision {request.precision} is written in opset {needed}"


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


def memory_refused(target: Target, manifest: Manifest, request: Request, each: float) -> str | None:
    """Why the largest board of the kind has too little memory to build the engines or to hold all four and the caches;
    None where it has enough, or where boards differ too much to tell."""
    if not target.board.memory:
        return None
    most = target.board.memory[0]
    sizes = {part: each * count for part, count in weight_parameters(manifest.geometry).items()}
    rows = [kept + request.max_text + request.max_new for kept in manifest.kv_rows]
    wanted = room(sizes, manifest.geometry.text, rows, batch=request.batch, element=4 if each == 4 else 2)
    if wanted.need <= most:
        return None
    build = wanted.build[wanted.largest]
    what = (
        f"building the engine of {wanted.largest} takes about {build:.1f} GiB at its peak"
        if build > most
        else f"four engines and the caches of {request.batch} prompts take about {wanted.run:.1f} GiB"
    )
    return (
        f"--target {target.text}: {what} (estimated from {engine_bytes(sizes)[wanted.largest] / GIB:.1f} GiB of "
        f"weights), and {target.board.title} has at most {most} GiB; take a smaller model or batch, fewer bytes per "
        "weight, or a board with more memory"
    )
