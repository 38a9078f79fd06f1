"""From a recipe to a method, a count and what is frozen: with samples by calibration, else as it stands."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokcarve.passes.checkpoint import Checkpoint
from tokcarve.passes.errors import MethodError, ModelError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.stage import Frozen, Method
from tokcarve.recipes.artifact import check_output, default_directory
from tokcarve.recipes.budgets import resolve_budget
from tokcarve.recipes.calibration.bench import How, open_bench
from tokcarve.recipes.calibration.freeze import check_capture, freeze
from tokcarve.recipes.carve import method_of, planned
from tokcarve.recipes.manifest import CheckRecord
from tokcarve.recipes.schema import Recipe

__all__ = ["Settled", "settle"]


@dataclass(frozen=True, kw_only=True)
class Settled:
    """What an artifact is made from; `record` is what the manifest says of the calibration, None where none was."""

    method: Method
    tokens: int
    frozen: Frozen | None = None
    record: dict[str, Any] | None = None
    checks: tuple[CheckRecord, ...] = ()


def settle(
    recipe: Recipe, checkpoint: Checkpoint, geometry: Geometry, *, out: Path | None, force: bool, how: How
) -> tuple[Settled, Path]:
    """What `recipe` comes to, and the directory for it; what can be refused is refused before work begins."""
    method = method_of(recipe.method.name, recipe.method.parameters)
    tokens = resolve_budget(recipe.budget, method, geometry)
    place = out if out is not None else default_directory(checkpoint, recipe.method.name, tokens)
    check_output(place, force=force)
    _check_plan(recipe, checkpoint, method, geometry, tokens)
    if recipe.calibration is None:
        return Settled(method=method, tokens=tokens), place
    with open_bench(checkpoint, geometry, recipe.calibration, place, how) as bench:
        check = check_capture(bench)
        frozen, record = freeze(bench, method, tokens)
        record = bench.record | record
    return Settled(method=method, tokens=tokens, frozen=frozen, record=record, checks=(check,)), place


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
