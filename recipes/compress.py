"""A recipe into an artifact: resolve, capture, calibrate, carve, check, write. Whole or not at all.

Weights are read only where calibration needs them; everything else happens on the meta device, so a 7B checkpoint
costs seconds and megabytes.
"""

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save

from tokcarve.passes import families
from tokcarve.passes.checkpoint import Checkpoint, resolve, weights_identity
from tokcarve.passes.errors import MethodError, ModelError
from tokcarve.passes.families.load import read_config, read_model
from tokcarve.passes.flops import kv_bytes, rows_of
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.insert import RewriteResult
from tokcarve.passes.invariants import check_captured, check_carved, propagate_language
from tokcarve.passes.stage import Method
from tokcarve.recipes.artifact import Artifact, check_output, default_directory, remember, write_artifact
from tokcarve.recipes.budgets import resolve_budget
from tokcarve.recipes.calibration import Calibrated, calibrate, calibration_samples
from tokcarve.recipes.carve import method_of, planned, record, rewritten
from tokcarve.recipes.files import dump_recipe, load_recipe
from tokcarve.recipes.make import make_recipe
from tokcarve.recipes.manifest import (
    BudgetRecord,
    CheckRecord,
    Manifest,
    MethodRecord,
    ModelRecord,
    Numbers,
    StageEntry,
)
from tokcarve.recipes.schema import Recipe

__all__ = ["Plan", "Progress", "compress", "compress_recipe", "plan_recipe"]

Progress = Callable[[str, int, int], None]
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
    keep: float | None = None,
    tokens: int | None = None,
    avg_tokens: int | None = None,
    kv_mib: float | None = None,
    prefill_flops: float | None = None,
    max_text: int | None = None,
    max_new: int | None = None,
    params: Mapping[str, Any] | None = None,
    samples: str | None = None,
    count: int | None = None,
    seed: int = 0,
    positions: str = "renumbered",
    out: str | Path | None = None,
    force: bool = False,
) -> Artifact:
    """Carve `model` (directory, hub id or alias) by `method` to exactly one budget; see tokcarve.recipes.schema.Budget.

    Returns the artifact written to `out` (default NAME-METHOD-kN here). Raises a TokcarveError for every bad input,
    before anything is written.
    """
    recipe = make_recipe(
        model,
        method=method,
        keep=keep,
        tokens=tokens,
        avg_tokens=avg_tokens,
        kv_mib=kv_mib,
        prefill_flops=prefill_flops,
        max_text=max_text,
        max_new=max_new,
        params=params,
        positions=positions,
        samples=samples,
        count=count,
        seed=seed,
    )
    return compress_recipe(recipe, out=None if out is None else Path(out), force=force)


def compress_recipe(
    recipe: Recipe | Path,
    *,
    out: Path | None = None,
    force: bool = False,
    copy_weights: bool = False,
    progress: Progress | None = None,
) -> Artifact:
    """The artifact of `recipe`, written and remembered as the last one of this working directory."""
    recipe = load_recipe(recipe) if isinstance(recipe, Path) else recipe
    plan = plan_recipe(recipe, out=out, force=force, progress=progress)
    artifact = write_artifact(
        plan.out,
        plan.manifest,
        dump_recipe(recipe),
        plan.checkpoint,
        force=force,
        copy_weights=copy_weights,
        modules=plan.modules,
    )
    remember(artifact.directory)
    return artifact


def plan_recipe(
    recipe: Recipe, *, out: Path | None = None, force: bool = False, progress: Progress | None = None
) -> Plan:
    """Everything compress does short of writing: what `--dry-run` shows."""
    checkpoint = resolve(recipe.model)
    config = read_config(checkpoint.path)
    geometry = families.geometry(config)
    method = method_of(recipe.method.name, recipe.method.parameters)
    tokens = resolve_budget(recipe.budget, method, geometry)
    place = out if out is not None else default_directory(checkpoint, recipe.method.name, tokens)
    check_output(place, force=force)
    _check_plan(recipe, checkpoint, method, geometry, tokens)
    calibrated = _calibrated(recipe, method, checkpoint, tokens, progress)
    graphs = families.capture(families.empty(config))
    check_captured(graphs)
    frozen = None if calibrated is None else calibrated.frozen
    result = rewritten(graphs, method, tokens, frozen, recipe.positions)
    check_carved(result.graphs, result.schedule)
    manifest = _manifest(recipe, checkpoint, geometry, tokens, result, calibrated)
    tensors = {} if frozen is None else dict(frozen.tensors)
    return Plan(
        checkpoint=checkpoint,
        manifest=manifest,
        graphs=result.graphs,
        out=place,
        modules=save(tensors) if tensors else None,
    )


def _check_pixels(checkpoint: Checkpoint, geometry: Geometry) -> None:
    """A method that reads pixels turns them back into 8-bit levels, so it must know how they were normalised."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        path = checkpoint.path / name
        try:
            fields = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError as error:
            raise ModelError(f"{path} is no JSON ({error}); get the checkpoint's own file again") from None
        fields = fields.get("image_processor", fields)
        for key, expected in (("image_mean", geometry.vision.mean), ("image_std", geometry.vision.std)):
            if tuple(fields.get(key, expected)) != tuple(expected):
                raise MethodError(
                    f"the method reads pixels normalised with {key} {list(expected)}, as {geometry.vision.kind} towers "
                    f"are trained, and {path} says {fields[key]}; choose parameters that read no pixels"
                )


def _check_plan(recipe: Recipe, checkpoint: Checkpoint, method: Method, geometry: Geometry, tokens: int) -> None:
    """Refuses before anything is read what cannot be planned, and samples that are missing or for nothing."""
    learns = tokens < geometry.total and method.fit(geometry, tokens) is not None
    if learns and recipe.calibration is None:
        raise MethodError(
            f"method {recipe.method.name} learns its merge from samples; pass --samples (the bundled scenes, a folder "
            "of images, or a JSONL file)"
        )
    if not learns:
        stages = planned(method, geometry, tokens, None, recipe.positions)
        if any("pixels" in stage.reads for stage in stages):
            _check_pixels(checkpoint, geometry)
        if recipe.calibration is not None and method.dynamic() is None:
            raise MethodError(
                f"method {recipe.method.name} leaves nothing open to calibrate with these parameters; "
                "leave --samples out"
            )


def _calibrated(
    recipe: Recipe, method: Method, checkpoint: Checkpoint, tokens: int, progress: Progress | None
) -> Calibrated | None:
    if recipe.calibration is None:
        return None
    samples = calibration_samples(recipe.calibration)
    tell: Progress = progress if progress is not None else lambda what, done, total: None
    tell("reading weights", 0, 1)
    model = read_model(checkpoint.path)
    tell("reading weights", 1, 1)
    return calibrate(model, method, tokens, samples, checkpoint, tell)


def _manifest(
    recipe: Recipe,
    checkpoint: Checkpoint,
    geometry: Geometry,
    tokens: int,
    result: RewriteResult,
    calibrated: Calibrated | None,
) -> Manifest:
    checks = [CheckRecord(name="shapes", passed=True, detail="every node of the carved graph has the promised rows")]
    open_questions = ["logits and kept tokens of an exported graph (export compares them)", "speed on a device"]
    if calibrated is None:
        open_questions.append("weights were not read")
        if method_of(recipe.method.name, recipe.method.parameters).dynamic() is not None:
            open_questions.append("per-layer counts are assumed, not calibrated; pass --samples to calibrate")
    else:
        checks.extend(calibrated.checks)
    schedule = tuple(StageEntry(**entry) for entry in record(result.schedule))
    worked = rows_of(geometry, schedule, 0).text
    text = 1
    stored = tuple(key.shape[2] - text for key in propagate_language(result.graphs, text=text).keys)
    mib = 1024.0**2
    return Manifest(
        model=ModelRecord(
            name=checkpoint.name,
            path=str(checkpoint.path),
            revision=checkpoint.revision,
            architecture=checkpoint.architecture,
            weights=weights_identity(checkpoint),
        ),
        geometry=geometry,
        method=MethodRecord(name=recipe.method.name, params=recipe.method.parameters),
        budget=BudgetRecord(asked=dict(recipe.budget.asked), tokens=tokens, total=geometry.total),
        schedule=schedule,
        positions=recipe.positions,
        numbers=Numbers(
            tokens_entering=worked[0],
            tokens_mean=sum(worked) / len(worked),
            kv_mib=kv_bytes(geometry.text, stored) / mib,
            kv_mib_unpruned=kv_bytes(geometry.text, (geometry.total,) * len(stored)) / mib,
        ),
        kv_rows=stored,
        calibration=None if calibrated is None else calibrated.record,
        seed=recipe.calibration.seed if recipe.calibration is not None else 0,
        versions={name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        checks=tuple(checks),
        not_checked=tuple(open_questions),
    )
