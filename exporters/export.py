"""An artifact into its `ort` face: eight ONNX graphs, one weight file, golden samples, and the record of the proof.

A budget set adds four graphs per further budget, which read the same weights, and a router.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
from torch import nn

from tokcarve.exporters import verify
from tokcarve.exporters.device.compare import Check
from tokcarve.exporters.device.face import (
    FACE_DIRECTORY,
    ROUTER,
    BudgetSide,
    OrtFace,
    Side,
    StoredTensor,
    file_record,
    seal,
)
from tokcarve.exporters.device.pipeline import Pipeline
from tokcarve.exporters.device.session import Face
from tokcarve.exporters.golden import Golden, save_golden
from tokcarve.exporters.modules import Shapes
from tokcarve.exporters.onnx import OPSET, lower, weight_names
from tokcarve.exporters.source import Source, golden_of, load_source
from tokcarve.exporters.trt import TrtOutcome, prove_trt
from tokcarve.exporters.weights import Placed, WeightFile
from tokcarve.exporters.wellformed import check_graph
from tokcarve.passes.errors import CheckError, ExportError
from tokcarve.passes.geometry import Geometry
from tokcarve.recipes.artifact import Artifact, read_artifact
from tokcarve.recipes.atomic import replace_directory, write_file
from tokcarve.recipes.manifest import CheckRecord

__all__ = ["ExportResult", "GraphFile", "export_ort"]

Progress = Callable[[str, int, int], None]
_WEIGHTS = "weights.data"


@dataclass(frozen=True, kw_only=True)
class GraphFile:
    """One written graph: `weight_bytes` it reads from the weight file, `seconds` from torch to file."""

    name: str
    nodes: int
    selection_nodes: int
    graph_bytes: int
    weight_bytes: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was written and proven. `trt` is None unless TensorRT was asked for."""

    directory: Path
    record: OrtFace
    graphs: tuple[GraphFile, ...]
    weight_bytes: int
    seconds: float
    trt: TrtOutcome | None


def export_ort(
    artifact: str | Path,
    *,
    batch: int = 1,
    max_text: int = 64,
    max_new: int = 64,
    trt: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> ExportResult:
    """Write ARTIFACT/export/ort for prompts of up to `max_text` text tokens and answers of up to `max_new` tokens.

    Everything is proven before it takes its place; a CheckError says what did not hold, and then nothing is written.
    Raises ExportError for sizes the model cannot serve, an existing export without `force` and a full disk, and what
    reading an artifact raises.
    """
    started = time.perf_counter()
    tell = progress if progress is not None else lambda what, done, total: None
    found = read_artifact(Path(artifact))
    place = found.directory / FACE_DIRECTORY
    _check_request(found, place, batch=batch, max_text=max_text, max_new=max_new, force=force)
    tell("reading weights", 0, 1)
    source = load_source(found, batch=batch, max_text=max_text, max_new=max_new)
    tell("reading weights", 1, 1)
    _check_room(source.model, found.directory)
    with replace_directory(place) as work:
        # the device runtime, which proves the export, expects the layout of an artifact
        stage = work / FACE_DIRECTORY
        stage.mkdir(parents=True)
        graphs, tensors = _write_graphs(source, stage, tell)
        record, outcome = _prove(found, source, work, stage, graphs, trt, tell)
        record = record.model_copy(update={"tensors": tensors})
        write_file(stage / "export.json", seal(record))
        for path in list(stage.iterdir()):
            path.rename(work / path.name)
        shutil.rmtree(work / FACE_DIRECTORY.parts[0])
    tell("checking", 3, 3)
    return ExportResult(
        directory=place,
        record=record,
        graphs=graphs,
        weight_bytes=record.files[_WEIGHTS].bytes,
        seconds=time.perf_counter() - started,
        trt=outcome,
    )


def _check_request(artifact: Artifact, place: Path, *, batch: int, max_text: int, max_new: int, force: bool) -> None:
    for name, value, least in (("batch", batch, 1), ("max-text", max_text, 4), ("max-new", max_new, 1)):
        if value < least:
            raise ExportError(f"--{name} {value} is too small; give {least} or more")
    geometry: Geometry = artifact.manifest.geometry
    longest, limit = geometry.total + max_text + max_new, geometry.text.max_positions
    window = geometry.text.sliding_window
    if longest > limit:
        raise ExportError(
            f"--max-text {max_text} and --max-new {max_new} with {geometry.total} visual tokens make {longest} "
            f"positions, and the model has {limit}; give less text or fewer new tokens"
        )
    if window is not None and longest > window:
        raise ExportError(
            f"--max-text {max_text} and --max-new {max_new} with {geometry.total} visual tokens make {longest} rows, "
            f"more than the model's attention window of {window}; give less text or fewer new tokens"
        )
    if place.exists() and not force:
        raise ExportError(f"{place} exists; pass --force to replace it")


def _check_room(model: nn.Module, directory: Path) -> None:
    wanted = int(1.05 * sum(p.numel() * p.element_size() for p in model.parameters())) + 2**24
    free = shutil.disk_usage(directory).free
    if free < wanted:
        raise ExportError(
            f"the export needs {wanted / 2**30:.1f} GiB in {directory}, and {free / 2**30:.1f} GiB are free; "
            "free some space or move the artifact to a larger disk"
        )


def _write_graphs(source: Source, stage: Path, tell: Progress) -> tuple[tuple[GraphFile, ...], dict[str, StoredTensor]]:
    names = weight_names(source.model)
    table = names.get(source.largest.graphs.parts.embed_tokens.weight.data_ptr(), "")  # type: ignore[operator]
    pieces = list(source.pieces())
    written = []
    with WeightFile(stage / _WEIGHTS) as weights:
        for done, (name, piece) in enumerate(pieces):
            tell("writing graphs", done, len(pieces))
            started = time.perf_counter()
            model = lower(
                piece.module,
                piece.inputs,
                input_names=piece.input_names,
                output_names=piece.output_names,
                names=names,
                as_stored=(table,),
            )
            size = weights.save(model, stage / name)
            written.append(_graph_file(name, model, size, time.perf_counter() - started))
    return tuple(written), _stored(weights.placed)


def _stored(placed: Sequence[Placed]) -> dict[str, StoredTensor]:
    """What lies in the weight file; a constant whose name another one has is named with its place too."""
    found = dict[str, StoredTensor]()
    for one in placed:
        name = one.name if one.name not in found else f"{one.name}@{one.offset}"
        found[name] = StoredTensor(bytes=one.length, sha256=one.sha256, offset=one.offset)
    return found


def _graph_file(name: str, model: ir.Model, size: int, seconds: float) -> GraphFile:
    external = [value.const_value for value in model.graph.initializers.values()]
    return GraphFile(
        name=name,
        nodes=len(model.graph),
        selection_nodes=sum(str(node.name).startswith("tokcarve_select") for node in model.graph),
        graph_bytes=size,
        weight_bytes=sum(tensor.nbytes for tensor in external if isinstance(tensor, ir.ExternalTensor)),
        seconds=round(seconds, 2),
    )


def _prove(
    artifact: Artifact,
    source: Source,
    work: Path,
    stage: Path,
    graphs: tuple[GraphFile, ...],
    trt: bool,
    tell: Progress,
) -> tuple[OrtFace, TrtOutcome | None]:
    """The record of everything in `stage`, all of it checked; CheckError for the first check that does not hold."""
    paths = [stage / graph.name for graph in graphs]
    tell("checking", 0, 3)
    checks = [check_graph(path) for path in paths]
    checks.append(verify.check_weights(paths, dict((*source.model.named_parameters(), *source.model.named_buffers()))))
    _require(checks)
    tell("checking", 1, 3)
    more, open_questions = _compare(artifact, source, work, stage)
    checks += more
    outcome = None
    if trt:
        tell("checking", 2, 3)
        outcome = prove_trt(stage, {graph.name: graph.weight_bytes for graph in graphs})
        checks += outcome.checks
        open_questions += outcome.not_checked
        _require(checks)
    else:
        open_questions.append("TensorRT: no lint, no parse, no build (export --trt does them)")
    kept = tuple(CheckRecord(name=check.name, passed=check.passed, detail=check.detail) for check in checks)
    final = _record(artifact, source, stage)
    return final.model_copy(update={"checks": kept, "not_checked": tuple(open_questions)}), outcome


def _compare(artifact: Artifact, source: Source, work: Path, stage: Path) -> tuple[list[Check], list[str]]:
    """ONNX Runtime against torch on golden samples of every budget, which are written, and what that leaves open."""
    checks, open_questions = list[Check](), list[str]()
    face = Face(artifact=work, record=_record(artifact, source, stage), providers=("CPUExecutionProvider",))
    for one in source.carved:
        golden = golden_of(source, one)
        further = one is not source.largest
        label = f"pruned to {one.budget}" if further else "pruned"
        save_golden(golden, one.graphs.geometry, stage / (f"golden.k{one.budget}.npz" if further else "golden.npz"))
        made = _numbers(Pipeline(face, baseline=False, budget=one.budget if further else None), golden, label)
        if not further:
            made += _numbers(Pipeline(face, baseline=True), golden, "unpruned")
            if source.router is not None:
                made.append(verify.check_router(face.open(ROUTER), source.router, golden.samples))
        _require(made)
        power, left = _judge(golden)
        checks += made + [replace(check, name=f"{label}: {check.name}" if further else check.name) for check in power]
        open_questions += [f"{label}: {text}" if further else text for text in left if text not in open_questions]
    return checks, open_questions


def _numbers(pipeline: Pipeline, golden: Golden, side: str) -> list[Check]:
    expected = golden.plain if pipeline.baseline else golden.pruned
    made = verify.check_numbers(pipeline, golden.samples, expected, side=side)
    pipeline.release()
    return made


def _judge(golden: Golden) -> tuple[list[Check], list[str]]:
    """What the golden comparison was worth: the check of power if it had any, and what it leaves open."""
    power = verify.check_power(golden)
    open_questions = ["ONNX Runtime ran on the CPU; no GPU provider was tried", "no run on an edge device"]
    if not power.passed:
        open_questions.append(f"the comparison of logits has no power to tell the pruned model apart: {power.detail}")
    if golden.skipped:
        open_questions.append(f"{golden.skipped} images were passed over: rounding decides what they keep or merge")
    return [power] if power.passed else [], open_questions


def _require(checks: list[Check]) -> None:
    failed = [check for check in checks if not check.passed]
    if failed:
        more = f" ({len(failed) - 1} further checks failed)" if len(failed) > 1 else ""
        raise CheckError(f"the export does not hold and was not written: {failed[0].name}: {failed[0].detail}{more}")


def _record(artifact: Artifact, source: Source, stage: Path) -> OrtFace:
    sizes, plain = source.largest.sizes, source.plain.sizes
    router = artifact.manifest.router
    further = [BudgetSide(budget=one.budget or 0, **_counts(one.sizes)) for one in source.carved[1:]]
    files = {str(path.relative_to(stage)): file_record(path) for path in sorted(stage.rglob("*")) if path.is_file()}
    return OrtFace(
        batch=sizes.batch,
        total=sizes.total,
        max_text=sizes.prompt - sizes.tokens,
        max_new=sizes.max_new,
        opset=OPSET,
        dtype="float32",
        positions=artifact.manifest.positions,
        pruned=Side(**_counts(sizes)),
        baseline=Side(**_counts(plain)),
        geometry=artifact.manifest.geometry,
        files=files,
        checks=(),
        not_checked=(),
        artifact=artifact.manifest.digest,
        budgets=tuple(further),
        router=router,
    )


def _counts(sizes: Shapes) -> dict[str, Any]:
    return {"tokens": sizes.tokens, "rows": sizes.rows, "capacities": sizes.capacities}
