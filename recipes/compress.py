"""A recipe into an artifact: resolve, capture, calibrate, carve, check, write. Whole or not at all.

Weights are read only where calibration needs them; everything else happens on the meta device, so a 7B checkpoint
costs seconds and megabytes.
"""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

from safetensors.torch import save

from tokcarve.passes import families
from tokcarve.passes.checkpoint import Checkpoint, resolve, weights_identity
from tokcarve.passes.families.load import read_config
from tokcarve.passes.flops import kv_bytes, rows_of
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.insert import RewriteResult
from tokcarve.passes.invariants import check_captured, check_carved, propagate_language
from tokcarve.passes.stage import Method
from tokcarve.recipes.artifact import Artifact, remember, write_artifact
from tokcarve.recipes.calibration.bench import How
from tokcarve.recipes.calibration.route import Part, check_set
from tokcarve.recipes.calibration.settle import Settled, settle
from tokcarve.recipes.carve import name_of, params_of, record, rewritten
from tokcarve.recipes.files import dump_recipe, load_recipe
from tokcarve.recipes.make import make_recipe
from tokcarve.recipes.manifest import (
    BudgetRecord,
    CheckRecord,
    FurtherBudget,
    Manifest,
    MethodRecord,
    ModelRecord,
    Numbers,
    StageEntry,
)
from tokcarve.recipes.schema import Recipe

__all__ = ["Plan", "compress", "compress_recipe", "numbers_of", "plan_recipe"]

_PACKAGES = ("tokcarve", "torch", "transformers", "numpy", "pillow", "tokenizers")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What compress would write, and where: the manifest (not sealed), the carved graphs, the output directory, and
    the method's own tensors as a safetensors file (None where it has none)."""

    checkpoint: Checkpoint
    manifest: Manifest
    graphs: TokenGraphs
    out: Path
    modules: bytes | None = None


def compress(
    model: str,
    *,
    method: str,
    keep: float | str | None = None,
    max_loss: float | None = None,
    tokens: int | Sequence[int] | None = None,
    mean_tokens: int | None = None,
    avg_tokens: int | None = None,
    kv_mib: float | None = None,
    prefill_flops: float | None = None,
    max_text: int | None = None,
    max_new: int | None = None,
    params: Mapping[str, Any] | None = None,
    samples: str | None = None,
    count: int | None = None,
    quantile: float | None = None,
    trials: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    positions: str = "renumbered",
    out: str | Path | None = None,
    force: bool = False,
) -> Artifact:
    """Carve `model` (directory, hub id or alias) by `method` to exactly one budget; see tokcarve.recipes.schema.Budget.

    Returns the artifact written to `out` (default NAME-METHOD-kN here); TokcarveError for bad input, before writing.
    """
    recipe = make_recipe(
        model,
        method=method,
        keep=keep,
        max_loss=max_loss,
        tokens=tokens,
        mean_tokens=mean_tokens,
        avg_tokens=avg_tokens,
        kv_mib=kv_mib,
        prefill_flops=prefill_flops,
        max_text=max_text,
        max_new=max_new,
        params=params,
        positions=positions,
        samples=samples,
        count=count,
        quantile=quantile,
        trials=trials,
        steps=steps,
        seed=seed,
    )
    return compress_recipe(recipe, out=None if out is None else Path(out), force=force)


def compress_recipe(
    recipe: Recipe | Path,
    *,
    out: Path | None = None,
    force: bool = False,
    copy_weights: bool = False,
    how: How | None = None,
) -> Artifact:
    """The artifact of `recipe`, written and remembered as the last one of this working directory."""
    recipe = load_recipe(recipe) if isinstance(recipe, Path) else recipe
    started = perf_counter()
    plan = plan_recipe(recipe, out=out, force=force, how=how)
    artifact = write_artifact(
        plan.out,
        plan.manifest,
        dump_recipe(recipe),
        plan.checkpoint,
        force=force,
        copy_weights=copy_weights,
        modules=plan.modules,
        seconds=round(perf_counter() - started, 3),
    )
    remember(artifact.directory)
    return artifact


def plan_recipe(recipe: Recipe, *, out: Path | None = None, force: bool = False, how: How | None = None) -> Plan:
    """Everything compress does short of writing: what `--dry-run` shows."""
    checkpoint = resolve(recipe.model)
    config = read_config(checkpoint.path)
    geometry = families.geometry(config)
    graphs = families.capture(families.empty(config))
    check_captured(graphs)
    if recipe.budget.several:
        check_set(recipe, graphs)
    settled, place = settle(recipe, checkpoint, geometry, out=out, force=force, how=how if how is not None else How())
    result = rewritten(graphs, settled.method, settled.tokens, settled.frozen, recipe.positions)
    check_carved(result.graphs, result.schedule)
    manifest = _manifest(recipe, checkpoint, geometry, settled, result)
    tensors = {} if settled.frozen is None else dict(settled.frozen.tensors)
    if settled.routed is not None:
        tensors |= settled.routed.tensors
        further = tuple(_further(graphs, recipe, settled.method, part) for part in settled.routed.parts[:-1])
        manifest = manifest.model_copy(update={"budgets": further, "router": settled.routed.record})
    return Plan(
        checkpoint=checkpoint,
        manifest=manifest,
        graphs=result.graphs,
        out=place,
        modules=save(tensors) if tensors else None,
    )


def _further(graphs: TokenGraphs, recipe: Recipe, method: Method, part: Part) -> FurtherBudget:
    """A budget of a set beside the largest."""
    result = rewritten(graphs, method, part.tokens, part.frozen, recipe.positions)
    check_carved(result.graphs, result.schedule)
    schedule, numbers, stored = numbers_of(graphs.geometry, result)
    return FurtherBudget(
        tokens=part.tokens, schedule=schedule, numbers=numbers, kv_rows=stored, calibration=part.record
    )


def numbers_of(geometry: Geometry, result: RewriteResult) -> tuple[tuple[StageEntry, ...], Numbers, tuple[int, ...]]:
    """The schedule of a carved model, the three token numbers, and the visual rows that each language layer stores."""
    schedule = tuple(StageEntry(**entry) for entry in record(result.schedule))
    worked = rows_of(geometry, schedule, 0).text
    text = 1
    stored = tuple(key.shape[2] - text for key in propagate_language(result.graphs, text=text).keys)
    mib = 1024.0**2
    numbers = Numbers(
        tokens_entering=worked[0],
        tokens_mean=sum(worked) / len(worked),
        kv_mib=kv_bytes(geometry.text, stored) / mib,
        kv_mib_unpruned=kv_bytes(geometry.text, (geometry.total,) * len(stored)) / mib,
    )
    return schedule, numbers, stored


def _manifest(
    recipe: Recipe, checkpoint: Checkpoint, geometry: Geometry, settled: Settled, result: RewriteResult
) -> Manifest:
    method, tokens = settled.method, settled.tokens
    checks = [CheckRecord(name="shapes", passed=True, detail="every node of the carved graph has the promised rows")]
    open_questions = ["logits and kept tokens of an exported graph (export compares them)", "speed on a device"]
    if settled.record is None:
        open_questions.append("weights were not read")
        if method.dynamic() is not None:
            open_questions.append("per-layer counts are assumed, not calibrated; pass --samples to calibrate")
    checks.extend(settled.checks)
    schedule, numbers, stored = numbers_of(geometry, result)
    return Manifest(
        model=ModelRecord(
            name=checkpoint.path.name if os.path.isdir(os.path.expanduser(checkpoint.name)) else checkpoint.name,
            revision=checkpoint.revision,
            architecture=checkpoint.architecture,
            weights=weights_identity(checkpoint),
        ),
        geometry=geometry,
        method=MethodRecord(name=name_of(method), params=params_of(method)),
        budget=BudgetRecord(asked=dict(recipe.budget.asked), tokens=tokens, total=geometry.total),
        schedule=schedule,
        positions=recipe.positions,
        numbers=numbers,
        kv_rows=stored,
        calibration=settled.record,
        seed=recipe.calibration.seed if recipe.calibration is not None else 0,
        versions={name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        checks=tuple(checks),
        not_checked=tuple(open_questions),
    )
