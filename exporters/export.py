"""An artifact into an export: the graphs of the faces asked for over one weight file, golden samples, and the proof.

Weights go from the checkpoint to the weight file one by one, so that a model need not fit into memory.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokcarve.exporters.device.face import (
    EXPORT,
    FOLDER,
    RECORD,
    WEIGHTS,
    BudgetSide,
    ExportRecord,
    FaceFile,
    Side,
    StoredTensor,
    file_record,
    seal,
)
from tokcarve.exporters.faces import FACES, NOT_WRITTEN
from tokcarve.exporters.faces.kind import ALL, FaceKind, Proof, Request, Work
from tokcarve.exporters.golden import save_golden
from tokcarve.exporters.graph_file import GraphFile
from tokcarve.exporters.limits import check_request
from tokcarve.exporters.modules import FaceGraph, Shapes
from tokcarve.exporters.precision import needed_opset, precision_of
from tokcarve.exporters.prove import prove
from tokcarve.exporters.proving import CPU, proving_face
from tokcarve.exporters.quality import hear, measure
from tokcarve.exporters.source import Source, load_source, read_source
from tokcarve.exporters.writing import check_headers, write_graphs
from tokcarve.passes.errors import ExportError
from tokcarve.recipes.artifact import read_artifact
from tokcarve.recipes.atomic import replace_directory, write_file
from tokcarve.recipes.manifest import CheckRecord

__all__ = ["ExportResult", "GraphFile", "export_artifact"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was written and proven; `proofs` by the name of a face, and under "" what all of them share."""

    directory: Path
    record: ExportRecord
    graphs: tuple[GraphFile, ...]
    proofs: Mapping[str, Proof]
    seconds: float

    @property
    def weight_bytes(self) -> int:
        """Of the one weight file."""
        return self.record.files[f"{FOLDER}/{WEIGHTS}"].bytes


def export_artifact(
    artifact: str | Path, request: Request | None = None, *, force: bool = False, progress: Progress | None = None
) -> ExportResult:
    """Write ARTIFACT/export as `request` has it.

    Everything is proven before it takes its place; a CheckError says what did not hold, and then nothing is written.
    Raises ExportError for unknown faces and named ones that cannot carry the artifact, sizes that the model cannot
    serve, an existing export without `force` and a full disk, and what reading an artifact raises.
    """
    started = time.perf_counter()
    tell = progress if progress is not None else lambda what, done, total: None
    request = request if request is not None else Request()
    known = _kinds(request.faces)
    found = read_artifact(Path(artifact))
    place = found.directory / EXPORT
    check_request(found.manifest, request)
    precision = precision_of(request.precision, refer=request.reference_weights)
    if place.exists() and not force:
        raise ExportError(f"{place} exists; pass --force to replace it")
    kinds, refused = _able(known, {kind.name: kind.refuses(found, request) for kind in known}, request)
    tell("reading weights", 0, 1)
    source = load_source(
        found, batch=request.batch, max_text=request.max_text, max_new=request.max_new, precision=precision
    )
    tell("reading weights", 1, 1)
    kinds, more = _able(kinds, {kind.name: kind.cannot(source) for kind in kinds}, request)
    request = replace(request, faces=tuple(kind.name for kind in kinds))
    check_headers(source, found.directory, refer=request.reference_weights)
    with replace_directory(place) as root:
        # the device runtime, which proves the export, expects the layout of an artifact
        stage = root / EXPORT
        (stage / FOLDER).mkdir(parents=True)
        work, weights = _write(root, source, request, kinds, tell)
        for kind in kinds:
            kind.complete(work)
        proofs = prove(work, kinds, tell)
        tell("measuring quality", 0, 1)
        record = _finish(work, weights, proofs).model_copy(update={"refused": refused | more})
        tell("measuring quality", 1, 1)
        write_file(stage / RECORD, seal(record))
        for path in list(stage.iterdir()):
            path.rename(root / path.name)
        stage.rmdir()
    return ExportResult(
        directory=place, record=record, graphs=work.graphs, proofs=proofs, seconds=time.perf_counter() - started
    )


def _kinds(names: Sequence[str]) -> list[FaceKind]:
    unknown = [name for name in names if name not in {*FACES, ALL}]
    if unknown or not names:
        name = unknown[0] if unknown else ""
        why = f" ({NOT_WRITTEN[name]})" if name in NOT_WRITTEN else ""
        raise ExportError(f"no face {name!r}{why}; give one or more of {', '.join(FACES)}, or all")
    return [kind for name, kind in FACES.items() if name in names or ALL in names]


def _able(
    kinds: Sequence[FaceKind], answers: Mapping[str, str | None], request: Request
) -> tuple[list[FaceKind], dict[str, str]]:
    """The faces that can carry the artifact, and why others cannot; ExportError for one that was named and cannot."""
    refused = {name: why for name, why in answers.items() if why is not None}
    named = [why for name, why in refused.items() if name in request.faces]
    if named or len(refused) == len(kinds):
        raise ExportError(named[0] if named else next(iter(refused.values())))
    return [kind for kind in kinds if kind.name not in refused], refused


def _write(
    root: Path, source: Source, request: Request, kinds: Sequence[FaceKind], tell: Progress
) -> tuple[Work, FaceFile]:
    """Graphs and weights, then golden samples, of which no more is known than that torch made them."""
    pieces = dict(piece for kind in kinds for piece in kind.pieces(source))
    stage = root / EXPORT
    written = write_graphs(source, request, pieces, stage / FOLDER, tell)
    reading = read_source(source)
    heard = None
    if isinstance(reading, str):
        goldens, router = [], None
    else:
        goldens, router = [(one, reading.golden(one)) for one in source.carved], reading.router
        heard = hear(source, reading.unrounded())
    for one, golden in goldens:
        name = "golden.npz" if one is source.largest else f"golden.k{one.budget}.npz"
        predicts = router if one is source.largest else None
        save_golden(golden, one.graphs.geometry, stage / name, predicts)
    draft = _record(source, request, written.tensors, pieces)
    if isinstance(reading, str):
        gap = f"no number was compared with the model in torch: {reading}; export where they are"
        draft = draft.model_copy(update={"not_checked": (gap,)})
    work = Work(
        root=root,
        source=source,
        request=request,
        draft=draft,
        graphs=written.graphs,
        goldens=tuple(goldens),
        router=router,
        predicted=written.predicted,
        heard=heard,
    )
    return work, written.weights


def _record(
    source: Source, request: Request, tensors: dict[str, StoredTensor], pieces: Mapping[str, FaceGraph]
) -> ExportRecord:
    """What is known of an export before anything of it was checked, without its files."""
    sizes, plain, manifest = source.largest.sizes, source.plain.sizes, source.artifact.manifest
    further = [BudgetSide(budget=one.budget or 0, **_counts(one.sizes)) for one in source.carved[1:]]
    return ExportRecord(
        faces=request.faces,
        batch=sizes.batch,
        total=sizes.total,
        max_text=sizes.prompt - sizes.tokens,
        max_new=sizes.max_new,
        opset=max(request.opset, needed_opset(request.precision, "ort")),
        target=request.target,
        dtype=source.precision.computes,
        precision=source.precision.name,
        positions=manifest.positions,
        pruned=Side(**_counts(sizes)),
        baseline=Side(**_counts(plain)),
        geometry=manifest.geometry,
        files={},
        checks=(),
        not_checked=(),
        artifact=manifest.digest,
        tensors=tensors,
        open={name: piece.open_names for name, piece in pieces.items() if piece.opens},
        budgets=tuple(further),
        router=manifest.router,
    )


def _finish(work: Work, weights: FaceFile, proofs: Mapping[str, Proof]) -> ExportRecord:
    """The draft with its files, what was checked and what was not."""
    stage, heavy = work.directory, f"{FOLDER}/{WEIGHTS}"
    names = sorted(path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file())
    files = {name: weights if name == heavy else file_record(stage / name) for name in names}
    checks = [one for proof in proofs.values() for one in proof.checks]
    left = [text for proof in proofs.values() for text in proof.not_checked]
    quality = None
    if work.heard is not None:
        quality = measure(work.heard, proving_face(work.root, work.draft, CPU, exact=False))
    if "trt" not in proofs:
        left.append("TensorRT: no lint, no parse, no build (export --trt does them)")
    return work.draft.model_copy(
        update={
            "files": files,
            "quality": quality,
            "engines": tuple(engine for proof in proofs.values() for engine in proof.engines),
            "checks": tuple(CheckRecord(name=one.name, passed=one.passed, detail=one.detail) for one in checks),
            "not_checked": tuple(dict.fromkeys((*work.draft.not_checked, *left))),
        }
    )


def _counts(sizes: Shapes) -> dict[str, Any]:
    return {"tokens": sizes.tokens, "rows": sizes.rows, "capacities": sizes.capacities}
