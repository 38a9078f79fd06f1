"""tokcarve.json: what an artifact is made of, closed, versioned, and sealed so that a change by hand is noticed.

No dates, no machine and no path in it: running again gives the same bytes.
"""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_serializer,
)

from tokcarve import __version__
from tokcarve.passes.checkpoint import WeightsIdentity
from tokcarve.passes.errors import ArtifactError, BudgetError
from tokcarve.passes.geometry import Geometry

__all__ = [
    "FORMAT",
    "BudgetRecord",
    "CheckRecord",
    "FurtherBudget",
    "Manifest",
    "MethodRecord",
    "ModelRecord",
    "Numbers",
    "RoutedPart",
    "RouterRecord",
    "StageEntry",
    "parse_manifest",
    "seal",
]

FORMAT = 1

Asked = Literal[
    "keep", "max_loss", "tokens", "mean_tokens", "avg_tokens", "kv_mib", "prefill_flops", "max_text", "max_new"
]


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class ModelRecord(_Closed):
    """The base model: a hub id, an alias, or the last part of a directory's name; where it lies is in made.json."""

    name: str
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

    asked: dict[Asked, int | float | Literal["auto"] | tuple[int, ...]]
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


class FurtherBudget(_Closed):
    """One more budget of a set, in the words of the manifest's own."""

    tokens: int
    schedule: tuple[StageEntry, ...]
    numbers: Numbers
    kv_rows: tuple[int, ...]
    calibration: dict[str, Any] | None = None


class RoutedPart(_Closed):
    """What the router did on samples held out: the share of them that got each budget, `mean_tokens`, and mean losses:
    `loss` by the router, `random` with the same shares, `oracle` choosing by the losses themselves at the same mean,
    and `fixed` of every budget alone."""

    images: int
    shares: tuple[float, ...]
    mean_tokens: float
    loss: float
    random: float
    oracle: float
    fixed: tuple[float, ...]


class RouterRecord(_Closed):
    """What chooses among `tokens`, rising, for an image: the least predicted loss with `price` nats on every token.

    layer: of the vision tower, that it reads; mean_tokens: what the price is for; prices: (mean, price) for other means
    on the samples that calibrate, rising; explained: the share of what varies of the loss that it predicts there.
    """

    layer: int
    tokens: tuple[int, ...]
    mean_tokens: int
    price: float
    prices: tuple[tuple[float, float], ...]
    penalty: float
    explained: float
    held_out: RoutedPart


class CheckRecord(_Closed):
    """One check that was made: its name, whether it passed, and what was compared or found."""

    name: str
    passed: bool
    detail: str


class Manifest(_Closed):
    """The whole of tokcarve.json; `kv_rows` counts the visual rows that each language layer stores, `modules` is the
    SHA-256 of modules.safetensors where the method or a router has tensors, `digest` covers everything else. Of a
    budget set it describes the largest budget, which loses least; `budgets` are the others, the smallest first."""

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
    budgets: tuple[FurtherBudget, ...] = ()
    router: RouterRecord | None = None
    modules: str | None = None
    seed: int = Field(ge=0)
    versions: dict[str, str]
    checks: tuple[CheckRecord, ...] = ()
    not_checked: tuple[str, ...] = ()
    digest: str = ""

    @property
    def counts(self) -> tuple[int, ...]:
        """The counts of all budgets, rising."""
        return tuple(sorted((self.budget.tokens, *(one.tokens for one in self.budgets))))

    def schedule_of(self, tokens: int) -> tuple[StageEntry, ...]:
        """The schedule of one of the counts; BudgetError for another."""
        if tokens == self.budget.tokens:
            return self.schedule
        for one in self.budgets:
            if one.tokens == tokens:
                return one.schedule
        raise BudgetError(
            f"tokens={tokens} is no budget of this artifact; choose one of {', '.join(map(str, self.counts))}, or "
            "compress again"
        )

    @model_serializer(mode="wrap")
    def _without_empty(self, write: Any) -> dict[str, Any]:
        """An artifact of one budget says nothing of sets."""
        fields: dict[str, Any] = write(self)
        empty = [] if self.budgets else ["budgets", "router"]
        return {key: value for key, value in fields.items() if key not in empty}


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
