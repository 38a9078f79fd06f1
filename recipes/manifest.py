"""tokcarve.json: what an artifact is made of, closed, versioned, and sealed so that a change by hand is noticed.

No dates and no machine in it but the path of the base weights: running again gives the same bytes.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from tokcarve import __version__
from tokcarve.passes.checkpoint import WeightsIdentity
from tokcarve.passes.errors import ArtifactError
from tokcarve.passes.geometry import Geometry

__all__ = [
    "FORMAT",
    "BudgetRecord",
    "CheckRecord",
    "Manifest",
    "MethodRecord",
    "ModelRecord",
    "Numbers",
    "StageEntry",
    "parse_manifest",
    "seal",
]

FORMAT = 1


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class ModelRecord(_Closed):
    """The base model: `path` is absolute, or "model" inside an artifact that carries its weights."""

    name: str
    path: str
    revision: str | None
    architecture: str
    weights: WeightsIdentity


def _as_taken(params: dict[str, Any]) -> dict[str, Any]:
    # lists are what JSON makes of the tuples that a method takes
    return {key: tuple(value) if isinstance(value, list) else value for key, value in params.items()}


class MethodRecord(_Closed):
    """The method and all of its hyper-parameters."""

    name: str
    params: Annotated[dict[str, Any], AfterValidator(_as_taken)]


class BudgetRecord(_Closed):
    """What was asked for ({"keep": 0.11}, {"tokens": 64}, ...), and the counts it came to: `tokens` of `total`."""

    asked: dict[Literal["keep", "tokens", "avg_tokens", "kv_mib", "prefill_flops", "max_text", "max_new"], int | float]
    tokens: int
    total: int


class StageEntry(_Closed):
    """One place where `total` visual tokens become `keep`; in a language model also how what is left is
    numbered, and the `neurons` that visual tokens have in a lean layer."""

    site: str
    total: int
    keep: int
    how: Literal["choose", "mask", "merge", "resize", "exit", "lean"]
    positions: Literal["original", "renumbered"] | None = None
    neurons: int | None = None


class Numbers(_Closed):
    """The numbers of every report: visual tokens that enter the language model, their mean over its layers, and MiB of
    their keys and values in fp16 at batch 1, here and unpruned."""

    tokens_entering: int
    tokens_mean: float
    kv_mib: float
    kv_mib_unpruned: float


class CheckRecord(_Closed):
    """One check that was made: its name, whether it passed, and what was compared or found."""

    name: str
    passed: bool
    detail: str


class Manifest(_Closed):
    """The whole of tokcarve.json; `kv_rows` counts the visual rows that each language layer stores, `modules` is the
    SHA-256 of modules.safetensors where the method has tensors of its own, `digest` covers everything else."""

    format: Literal[1] = 1
    tokcarve: str = __version__
    model: ModelRecord
    geometry: Geometry
    method: MethodRecord
    budget: BudgetRecord
    schedule: tuple[StageEntry, ...]
    positions: Literal["renumbered", "original"]
    numbers: Numbers
    kv_rows: tuple[int, ...]
    calibration: dict[str, Any] | None = None
    modules: str | None = None
    seed: int = Field(ge=0)
    versions: dict[str, str]
    checks: tuple[CheckRecord, ...] = ()
    not_checked: tuple[str, ...] = ()
    digest: str = ""


def seal(manifest: Manifest) -> Manifest:
    """The same manifest with its digest filled in."""
    return manifest.model_copy(update={"digest": _digest(manifest.model_dump(mode="json"))})


def parse_manifest(path: Path) -> Manifest:
    """The manifest in a file.

    Raises ArtifactError for a missing or unreadable file, another format, a digest that does not fit, and keys or
    values that do not belong.
    """
    again = "run `tokcarve compress` again"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(f"{path.parent} is no artifact (it has no {path.name}); {again}, or name one") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read as JSON ({error}); {again}") from None
    if not isinstance(fields, dict) or type(fields.get("format")) is not int:
        raise ArtifactError(f"{path} is no manifest (it has no 'format'); {again}")
    if fields["format"] != FORMAT:
        raise ArtifactError(
            f"{path} has format {fields['format']}, written by tokcarve {fields.get('tokcarve', '(unknown)')}; this is "
            f"tokcarve {__version__}, which reads format {FORMAT}: install that version, or {again}"
        )
    if fields.get("digest") != _digest(fields):
        raise ArtifactError(f"{path} does not match its digest, so it was changed by hand; {again}")
    try:
        return Manifest.model_validate_json(json.dumps(fields))
    except ValidationError as error:
        faults = [f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()]
        raise ArtifactError(f"{path} does not fit its format ({'; '.join(faults[:3])}); {again}") from None


def _digest(fields: dict[str, Any]) -> str:
    rest = {key: value for key, value in fields.items() if key != "digest"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
