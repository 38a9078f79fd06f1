"""The record of an exported `ort` face, `export/ort/export.json`: closed, versioned, and sealed by a digest.

The exporter fills it, the device reads it; both through this file, so that a key cannot mean two things. `files` lists
every file of the face by its path inside it (`weights.data`, `vision.onnx`, `baseline.vision.onnx`, ...). Graphs are
hashed again when they are loaded; `weights.data`, which may be gigabytes, is checked by its size alone.
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
    "FACE_DIRECTORY",
    "RECORD",
    "ROUTER",
    "WEIGHTS",
    "BudgetSide",
    "FaceFile",
    "OrtFace",
    "Side",
    "StoredTensor",
    "check_files",
    "check_origin",
    "file_record",
    "graph_file",
    "read_face",
    "seal",
]

FACE_DIRECTORY = Path("export") / "ort"
BASELINE = "baseline."
"""Prefix of the unpruned model's graphs, which lie beside the pruned ones: weights must be in a graph's own folder."""
RECORD, WEIGHTS = "export.json", "weights.data"
"""The record of a face, and the one file with the weights of all its graphs."""
ROUTER = "router"
"""The graph of a budget set that predicts from pixels what each budget loses."""
_HASHED_UP_TO = 64 * 2**20


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class FaceFile(_Closed):
    """Size in bytes and SHA-256 (hexadecimal) of one file."""

    bytes: int
    sha256: str


class StoredTensor(FaceFile):
    """The same of one tensor, which lies at `offset` in the weight file."""

    offset: int


class Side(_Closed):
    """One set of four graphs: image tokens that enter the language model, then rows and KV capacity of each layer."""

    tokens: int
    rows: tuple[int, ...]
    capacities: tuple[int, ...]


class BudgetSide(Side):
    """The graphs of a further budget of a set, which is a count behind the last stage."""

    budget: int


class OrtFace(_Closed):
    """What is in a face: counts are rows or tokens; `artifact` is the digest of the manifest it was exported from,
    `tensors` what the weight file holds, by name. Of a budget set `pruned` is the largest budget, `budgets` are the
    others, and `router` chooses among them."""

    format: Literal[1] = 1
    face: Literal["ort"] = "ort"
    batch: int
    total: int
    max_text: int
    max_new: int
    opset: int
    dtype: Literal["float32", "float16"]
    positions: Literal["renumbered", "original"]
    pruned: Side
    baseline: Side
    geometry: Geometry
    files: dict[str, FaceFile]
    checks: tuple[CheckRecord, ...]
    not_checked: tuple[str, ...]
    artifact: str
    tensors: dict[str, StoredTensor] = {}
    budgets: tuple[BudgetSide, ...] = ()
    router: RouterRecord | None = None
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
        """The face of one budget says nothing of sets."""
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


def seal(face: OrtFace) -> str:
    """The JSON text of `face`, ending in a newline, with its digest filled in; nothing else is changed."""
    fields = face.model_dump(mode="json")
    return json.dumps({**fields, "digest": _digest(fields)}, indent=2, ensure_ascii=False) + "\n"


def file_record(path: Path) -> FaceFile:
    """Size and SHA-256 of `path`, read in blocks."""
    with path.open("rb") as stream:
        return FaceFile(bytes=path.stat().st_size, sha256=hashlib.file_digest(stream, "sha256").hexdigest())


def read_face(artifact: Path) -> OrtFace:
    """The record of the `ort` face of `artifact` (the directory that `compress` wrote).

    Raises ExportError if there is none, ArtifactError if it is not one of ours, of a newer format or edited.
    """
    path = artifact / FACE_DIRECTORY / RECORD
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ExportError(f"{artifact} has no export/ort yet; write it with `tokcarve export {artifact}`") from None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); export again with `tokcarve export`") from error
    if not isinstance(fields, dict):
        raise ArtifactError(f"{path} holds no JSON object; export again with `tokcarve export`")
    if fields.get("format") != 1:
        raise ArtifactError(f"{path} has format {fields.get('format')!r}, this version reads 1; export again")
    if fields.get("digest") != _digest(fields):
        raise ArtifactError(f"{path} does not match its digest, so it was edited; export again with `tokcarve export`")
    try:
        return OrtFace.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}: {place}: {first['msg']}; export again with `tokcarve export`") from error


def check_files(artifact: Path, face: OrtFace) -> None:
    """Compares every file of the face with its record: sizes always, SHA-256 of files up to 64 MiB other than weights.

    Raises ArtifactError naming the first file that is missing or differs.
    """
    for name, recorded in face.files.items():
        path = artifact / FACE_DIRECTORY / name
        if not path.is_file():
            raise ArtifactError(f"{path} is missing; export again with `tokcarve export {artifact}`")
        size = path.stat().st_size
        hashed = path.suffix == ".onnx" and size <= _HASHED_UP_TO
        if size != recorded.bytes or (hashed and file_record(path).sha256 != recorded.sha256):
            raise ArtifactError(f"{path} is not the file that was exported; export again with `tokcarve export`")


def check_origin(artifact: Path, face: OrtFace, manifest: Manifest) -> None:
    """Raises ArtifactError if `face` was exported from another manifest than the one that is beside it now."""
    if face.artifact != manifest.digest:
        raise ArtifactError(
            f"{artifact / FACE_DIRECTORY} was exported from another compression than {artifact} holds now; "
            f"export again with `tokcarve export {artifact}`"
        )
