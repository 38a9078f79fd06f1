"""Graphs of other shapes beside an export, in `export/sweep/`: for measuring, not for answering.

Graphs have constant shapes, so what another batch or another number of tokens costs can only be told by other graphs.
They read the weights of the export, where these are, and were made and recorded by exporters/scratch.py:

    sweep.json                              this record
    tokens.N.baseline.prefill.onnx          the whole language model over N visual tokens
    batch.N.GRAPH.onnx                      the four graphs of both sides for N images

A device without torch uses those that are there.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from tokcarve.exporters.device.face import EXPORT, ExportRecord, FaceFile, Side, file_record, read_export
from tokcarve.exporters.device.session import Face
from tokcarve.passes.errors import ArtifactError

__all__ = ["SWEEP", "SWEEP_RECORD", "SweepRecord", "batch_face", "read_sweep", "sweep_files", "tokens_face"]

SWEEP, SWEEP_RECORD = "sweep", "sweep.json"
"""The folder in an export, and the record in it."""


class SweepRecord(BaseModel):
    """What is there: token counts, batches, and every file by its name in the folder; `export` is the digest of the
    export's record, whose weights the graphs read."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    format: Literal[1] = 1
    export: str
    tokens: tuple[int, ...] = ()
    batches: tuple[int, ...] = ()
    files: dict[str, FaceFile] = {}


def read_sweep(artifact: Path, record: ExportRecord) -> SweepRecord:
    """What was made for this export, empty where nothing was; ArtifactError where it cannot be read, or a file is not
    what was made."""
    folder = artifact / EXPORT / SWEEP
    remedy = f"remove {folder}, and measure again where the checkpoint is"
    try:
        found = _read(folder)
    except (ValidationError, OSError) as error:
        raise ArtifactError(f"{folder / SWEEP_RECORD} cannot be read ({type(error).__name__}); {remedy}") from error
    if found is None:
        return SweepRecord(export=record.digest)
    if found.export != record.digest:
        raise ArtifactError(f"{folder} was made for another export than the one beside it; {remedy}")
    for name, recorded in found.files.items():
        if not (folder / name).is_file() or file_record(folder / name) != recorded:
            raise ArtifactError(f"{folder / name} is not the file that was made; {remedy}")
    return found


def _read(folder: Path) -> SweepRecord | None:
    path = folder / SWEEP_RECORD
    return SweepRecord.model_validate_json(path.read_text(encoding="utf-8")) if path.exists() else None


def sweep_files(artifact: Path) -> dict[str, FaceFile]:
    """The files of that folder by their path in the export, as they were recorded, for whoever looks for files that do
    not belong there; none where there is no record of this export that can be read."""
    folder = artifact / EXPORT / SWEEP
    try:
        found = _read(folder)
    except (ValidationError, OSError):
        return {}
    if found is None or found.export != read_export(artifact).digest:
        return {}
    names = {**found.files, SWEEP_RECORD: file_record(folder / SWEEP_RECORD)}
    return {f"{SWEEP}/{name}": one for name, one in names.items()}


def tokens_face(face: Face, tokens: int) -> Face:
    """`face` with a whole model whose prefill reads `tokens` visual tokens; of it nothing else can be opened."""
    record, text = face.record, face.record.max_text
    rows = (text + tokens,) * len(record.baseline.rows)
    side = Side(tokens=tokens, rows=rows, capacities=tuple(count + record.max_new for count in rows))
    return replace(face, record=record.model_copy(update={"baseline": side}), reader=_reader(face, f"tokens.{tokens}."))


def batch_face(face: Face, batch: int) -> Face:
    """`face` for `batch` images at once: itself where it was exported for as many."""
    if batch == face.record.batch:
        return face
    return replace(
        face, record=face.record.model_copy(update={"batch": batch}), reader=_reader(face, f"batch.{batch}.")
    )


def _reader(face: Face, prefix: str) -> Callable[[Path], bytes]:
    folder = face.artifact / EXPORT / SWEEP
    return lambda path: (folder / f"{prefix}{path.name}").read_bytes()
