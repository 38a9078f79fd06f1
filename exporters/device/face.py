"""The record of an export, `export/export.json`: closed, versioned, and sealed by a digest.

The exporter fills it, the device reads it; both through this file, so that a key cannot mean two things. An export has
one or more faces, each a runtime's own layout, over one folder of graphs (`onnx/`) that read one weight file: whatever
reads ONNX refuses weights outside a graph's own directory. Graphs are hashed again when they are loaded;
`weights.data`, which may be gigabytes, is checked by its size alone.
"""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_serializer

from tokcarve.passes.errors import ArtifactError, BudgetError, ExportError
from tokcarve.passes.geometry import Geometry
from tokcarve.recipes.manifest import CheckRecord, Manifest, RouterRecord

__all__ = [
    "BASELINE",
    "EXPORT",
    "FOLDER",
    "RECORD",
    "ROUTER",
    "WEIGHTS",
    "BudgetSide",
    "EngineRecord",
    "ExportRecord",
    "FaceFile",
    "Quality",
    "QualityRow",
    "Side",
    "StoredTensor",
    "check_files",
    "check_origin",
    "file_record",
    "graph_file",
    "read_export",
    "seal",
]

EXPORT, FOLDER = Path("export"), "onnx"
"""An export in its artifact, and the graphs of all faces in their export."""
BASELINE = "baseline."
"""Prefix of the unpruned model's graphs, which lie beside the pruned ones: weights must be in a graph's own folder."""
RECORD, WEIGHTS = "export.json", "weights.data"
"""The record of an export, and the one file with the weights of all its graphs, which lies beside them."""
ROUTER = "router"
"""The graph of a budget set that predicts from pixels what each budget loses."""
_HASHED_UP_TO = 64 * 2**20


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FaceFile(_Closed):
    """Size in bytes and SHA-256 (hexadecimal) of one file."""

    bytes: int
    sha256: str


class StoredTensor(_Closed):
    """Size and place in bytes of one tensor in the weight file; SHA-256 of the file as far as the tensor's end."""

    bytes: int
    offset: int
    sha256_so_far: str


class Side(_Closed):
    """One set of four graphs: image tokens that enter the language model, then rows and KV capacity of each layer."""

    tokens: int
    rows: tuple[int, ...]
    capacities: tuple[int, ...]


class BudgetSide(Side):
    """The graphs of a further budget of a set, which is a count behind the last stage."""

    budget: int


class QualityRow(_Closed):
    """One model beside the whole one in float32: the share of its answers' tokens that it would have said too, and the
    mean divergence from its distribution, in nats."""

    graphs: str
    agreement: float
    kl: float


class Quality(_Closed):
    """What pruning and precision do to answers, on made-up samples: `tokens` of all answers were compared."""

    samples: int
    tokens: int
    rows: tuple[QualityRow, ...]


class EngineRecord(_Closed):
    """An engine that was built here: of which graph, into which of `files`, by what, in how many seconds, and the most
    MiB of memory that its builder had. loaded: whether it was read back; None where no GPU driver was there to ask."""

    graph: str
    file: str
    tool: str
    bytes: int
    seconds: float
    peak_mib: float
    loaded: bool | None


class ExportRecord(_Closed):
    """What is in an export: counts are rows or tokens; `artifact` is the digest of the manifest it was exported from,
    `files` every file by its path in `export/`, `tensors` what the weight file holds, by name, `open` the graphs with
    dimensions that are no constants, with the names of these, `refused` the faces that cannot carry the artifact and
    why, where all were asked for. Of a budget set `pruned` is the largest budget, `budgets` are the others, and
    `router` chooses among them. Graphs compute in `dtype`; `precision` is what was asked for. `target` is the board
    that `trt` was made for, as it was asked for, and `engines` what was built for it here."""

    format: Literal[1] = 1
    faces: tuple[str, ...]
    batch: int
    total: int
    max_text: int
    max_new: int
    opset: int
    dtype: Literal["float32", "float16", "bfloat16"]
    positions: Literal["renumbered", "original"]
    pruned: Side
    baseline: Side
    geometry: Geometry
    files: dict[str, FaceFile]
    checks: tuple[CheckRecord, ...]
    not_checked: tuple[str, ...]
    artifact: str
    tensors: dict[str, StoredTensor] = {}
    open: dict[str, tuple[str, ...]] = {}
    refused: dict[str, str] = {}
    budgets: tuple[BudgetSide, ...] = ()
    router: RouterRecord | None = None
    target: str | None = None
    engines: tuple[EngineRecord, ...] = ()
    precision: Literal["fp32", "fp16", "bf16", "int8", "int4"] = "fp32"
    quality: Quality | None = None
    digest: str = ""

    @property
    def counts(self) -> tuple[int, ...]:
        """The budgets of a set, rising; empty where there is one."""
        return () if self.router is None else self.router.tokens

    def side(self, baseline: bool, budget: int | None = None) -> Side:
        """The unpruned graphs' counts if `baseline`, else those of a budget: the largest, or only one, unless told.

        BudgetError for a budget that the face does not have.
        """
        if baseline:
            return self.baseline
        if budget is None or budget == max(self.counts, default=None):
            return self.pruned
        found = [side for side in self.budgets if side.budget == budget]
        if not found:
            has = f"choose one of {', '.join(map(str, self.counts))}" if self.counts else "it has one, so name none"
            raise BudgetError(f"tokens={budget} is no budget of this export; {has}, or compress and export again")
        return found[0]

    @model_serializer(mode="wrap")
    def _without_empty(self, write: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """The export of one budget says nothing of sets."""
        fields: dict[str, Any] = write(self)
        empty = [] if self.budgets else ["budgets", "router"]
        return {key: value for key, value in fields.items() if key not in empty}


def graph_file(name: str, *, baseline: bool = False, budget: int | None = None) -> str:
    """The file of a graph: of the unpruned model if `baseline`, or of a `budget` beside the largest of a set."""
    return f"{BASELINE if baseline else ''}{name}{'' if budget is None else f'.k{budget}'}.onnx"


def _digest(fields: dict[str, Any]) -> str:
    rest = {key: value for key, value in fields.items() if key != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def seal(record: ExportRecord) -> str:
    """The JSON text of `record`, ending in a newline, with its digest filled in; nothing else is changed."""
    fields = record.model_dump(mode="json")
    return json.dumps({**fields, "digest": _digest(fields)}, indent=2, ensure_ascii=False) + "\n"


def file_record(path: Path) -> FaceFile:
    """Size and SHA-256 of `path`, read in blocks."""
    with path.open("rb") as stream:
        return FaceFile(bytes=path.stat().st_size, sha256=hashlib.file_digest(stream, "sha256").hexdigest())


def read_export(artifact: Path) -> ExportRecord:
    """The record of the export in `artifact` (the directory that `compress` wrote).

    Raises ExportError if there is none, ArtifactError if it is not one of ours, of a newer format or edited.
    """
    path = artifact / EXPORT / RECORD
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{artifact} has no export yet; write it with `tokcarve export {artifact}`") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); export again with `tokcarve export`") from error
    if not isinstance(fields, dict):
        raise ArtifactError(f"{path} holds no JSON object; export again with `tokcarve export`")
    if fields.get("format") != 1:
        raise ArtifactError(f"{path} has format {fields.get('format')!r}, this version reads 1; export again")
    if fields.get("digest") != _digest(fields):
        raise ArtifactError(f"{path} does not match its digest, so it was edited; export again with `tokcarve export`")
    try:
        return ExportRecord.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}: {place}: {first['msg']}; export again with `tokcarve export`") from error


def check_files(artifact: Path, record: ExportRecord) -> None:
    """Compares every file of the export with its record: sizes always, SHA-256 of graphs up to 64 MiB.

    Raises ArtifactError naming the first file that is missing or differs.
    """
    for name, recorded in record.files.items():
        path = artifact / EXPORT / name
        if not path.is_file():
            raise ArtifactError(f"{path} is missing; export again with `tokcarve export {artifact}`")
        size = path.stat().st_size
        hashed = path.suffix == ".onnx" and size <= _HASHED_UP_TO
        if size != recorded.bytes or (hashed and file_record(path).sha256 != recorded.sha256):
            raise ArtifactError(f"{path} is not the file that was exported; export again with `tokcarve export`")


def check_origin(artifact: Path, record: ExportRecord, manifest: Manifest) -> None:
    """Raises ArtifactError if `record` is of an export of another manifest than the one that is beside it now."""
    if record.artifact != manifest.digest:
        raise ArtifactError(
            f"{artifact / EXPORT} was exported from another compression than {artifact} holds now; "
            f"export again with `tokcarve export {artifact}`"
        )
