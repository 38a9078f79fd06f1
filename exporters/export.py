"""An artifact into its `ort` face: eight ONNX graphs, one weight file, golden samples, and the record of the proof.

A budget set adds four graphs per further budget, which read the same weights, and a router. Weights go from the
checkpoint to the weight file one by one, so that a model need not fit into memory.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokcarve.exporters.device.face import (
    FACE_DIRECTORY,
    RECORD,
    WEIGHTS,
    BudgetSide,
    FaceFile,
    OrtFace,
    Side,
    StoredTensor,
    file_record,
    seal,
)
from tokcarve.exporters.graph_file import GraphFile, graph_file_of
from tokcarve.exporters.modules import Shapes
from tokcarve.exporters.onnx import OPSET, lower, weight_names
from tokcarve.exporters.prove import prove
from tokcarve.exporters.source import Source, load_source
from tokcarve.exporters.trt import TrtOutcome
from tokcarve.exporters.weights import Placed, WeightFile
from tokcarve.passes.errors import ExportError
from tokcarve.passes.geometry import Geometry
from tokcarve.recipes.artifact import Artifact, read_artifact
from tokcarve.recipes.atomic import replace_directory, write_file

__all__ = ["ExportResult", "GraphFile", "export_ort"]

Progress = Callable[[str, int, int], None]


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
    _check_room(source.bytes, found.directory)
    with replace_directory(place) as work:
        # the device runtime, which proves the export, expects the layout of an artifact
        stage = work / FACE_DIRECTORY
        stage.mkdir(parents=True)
        graphs, tensors, weights = _write_graphs(source, stage, tell)
        draft = _record(source, tensors)
        proof = prove(source, draft, work, stage, graphs, trt, tell)
        files = {name: file_record(stage / name) for name in _files(stage) if name != WEIGHTS} | {WEIGHTS: weights}
        record = draft.model_copy(update={"files": files, "checks": proof.records, "not_checked": proof.not_checked})
        write_file(stage / RECORD, seal(record))
        for path in list(stage.iterdir()):
            path.rename(work / path.name)
        shutil.rmtree(work / FACE_DIRECTORY.parts[0])
    tell("checking", 3, 3)
    return ExportResult(
        directory=place,
        record=record,
        graphs=graphs,
        weight_bytes=record.files[WEIGHTS].bytes,
        seconds=time.perf_counter() - started,
        trt=proof.trt,
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


def _check_room(weight_bytes: int, directory: Path) -> None:
    wanted = int(1.05 * weight_bytes) + 2**24
    free = shutil.disk_usage(directory).free
    if free < wanted:
        raise ExportError(
            f"the export needs {wanted / 2**30:.1f} GiB in {directory}, and {free / 2**30:.1f} GiB are free; "
            "free some space or move the artifact to a larger disk"
        )


def _write_graphs(
    source: Source, stage: Path, tell: Progress
) -> tuple[tuple[GraphFile, ...], dict[str, StoredTensor], FaceFile]:
    names = weight_names(source.model)
    table = names.get(source.largest.graphs.parts.embed_tokens.weight.data_ptr(), "")  # type: ignore[operator]
    pieces = list(source.pieces())
    written = []
    with WeightFile(stage / WEIGHTS, source.stored) as weights:
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
            written.append(graph_file_of(name, model, size, time.perf_counter() - started))
    return tuple(written), _stored(weights.placed), weights.record


def _stored(placed: Sequence[Placed]) -> dict[str, StoredTensor]:
    """What lies in the weight file; a constant whose name another one has is named with its place too."""
    found = dict[str, StoredTensor]()
    for one in placed:
        name = one.name if one.name not in found else f"{one.name}@{one.offset}"
        found[name] = StoredTensor(bytes=one.length, sha256=one.sha256, offset=one.offset)
    return found


def _files(stage: Path) -> list[str]:
    return sorted(path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file())


def _record(source: Source, tensors: dict[str, StoredTensor]) -> OrtFace:
    """What is known of a face before anything of it was checked, without its files."""
    sizes, plain, manifest = source.largest.sizes, source.plain.sizes, source.artifact.manifest
    further = [BudgetSide(budget=one.budget or 0, **_counts(one.sizes)) for one in source.carved[1:]]
    return OrtFace(
        batch=sizes.batch,
        total=sizes.total,
        max_text=sizes.prompt - sizes.tokens,
        max_new=sizes.max_new,
        opset=OPSET,
        dtype="float32",
        positions=manifest.positions,
        pruned=Side(**_counts(sizes)),
        baseline=Side(**_counts(plain)),
        geometry=manifest.geometry,
        files={},
        checks=(),
        not_checked=(),
        artifact=manifest.digest,
        tensors=tensors,
        budgets=tuple(further),
        router=manifest.router,
    )


def _counts(sizes: Shapes) -> dict[str, Any]:
    return {"tokens": sizes.tokens, "rows": sizes.rows, "capacities": sizes.capacities}
