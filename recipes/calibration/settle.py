"""From a recipe to a method, a count and what is frozen: with samples by calibration, else as it stands."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokcarve.passes.checkpoint import Checkpoint
from tokcarve.passes.errors import BudgetError, MethodError, ModelError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.stage import Frozen, Method
from tokcarve.recipes.artifact import check_output, default_directory
from tokcarve.recipes.budgets import resolve_budget
from tokcarve.recipes.calibration.auto import best_method, serving, smallest_count
from tokcarve.recipes.calibration.bench import How, open_bench
from tokcarve.recipes.calibration.freeze import check_capture, is_open, leaves_open
from tokcarve.recipes.calibration.proof import fixed
from tokcarve.recipes.calibration.route import Routed, route
from tokcarve.recipes.calibration.search import Search, search, search_of
from tokcarve.recipes.carve import method_of, params_of, planned
from tokcarve.recipes.manifest import CheckRecord
from tokcarve.recipes.schema import Recipe

__all__ = ["Settled", "settle"]


@dataclass(frozen=True, kw_only=True)
class Settled:
    """What an artifact is made from; `record` is what the manifest says of the calibration, None where none was;
    `routed` a budget set, whose largest budget the rest describes."""

    method: Method
    tokens: int
    frozen: Frozen | None = None
    record: dict[str, Any] | None = None
    checks: tuple[CheckRecord, ...] = ()
    routed: Routed | None = None


def settle(
    recipe: Recipe, checkpoint: Checkpoint, geometry: Geometry, *, out: Path | None, force: bool, how: How
) -> tuple[Settled, Path]:
    """What `recipe` comes to, and the directory for it; what can be refused is refused before work begins."""
    if "auto" in (recipe.method.name, recipe.budget.keep):
        return _automatic(recipe, checkpoint, geometry, out, force, how)
    if recipe.budget.several:
        return _several(recipe, checkpoint, geometry, out, force, how)
    method = method_of(recipe.method.name, recipe.method.parameters)
    tokens = resolve_budget(recipe.budget, method, geometry)
    place = out if out is not None else default_directory(checkpoint, recipe.method.name, f"k{tokens}")
    check_output(place, force=force)
    wanted = search_of(recipe, method, geometry, tokens)
    _check_plan(recipe, checkpoint, method, geometry, tokens, wanted)
    if recipe.calibration is None:
        return Settled(method=method, tokens=tokens), place
    with open_bench(checkpoint, geometry, recipe.calibration, place, how) as bench:
        check = check_capture(bench)
        frozen, record = None, bench.record
        if wanted is not None:
            found = search(bench, wanted)
            record |= {"asked": {"name": recipe.method.name, "params": params_of(method)}, "search": found.record}
            method, tokens = found.method, found.tokens
        if wanted is None or is_open(method, geometry, tokens):
            method, frozen, more = fixed(bench, method, tokens, recipe.positions)
            record = more | record
    return Settled(method=method, tokens=tokens, frozen=frozen, record=record, checks=(check,)), place


def _automatic(
    recipe: Recipe, checkpoint: Checkpoint, geometry: Geometry, out: Path | None, force: bool, how: How
) -> tuple[Settled, Path]:
    """The count, or the method, that samples decide."""
    name, budget, asked = recipe.method.name, recipe.budget, recipe.calibration
    assert asked is not None
    if asked.trials is not None:
        raise MethodError(
            f"trials={asked.trials} is about a search for hyper-parameters, and there is none with auto; "
            "leave --trials out, or name the method and the count"
        )
    if name == "auto" and budget.keep == "auto":
        raise BudgetError(
            "both the method and the count were left to auto; fix one of them, the other is chosen for it"
        )
    said = "-".join(f"{key}-{value}" for key, value in budget.asked.items()).replace("_", "-")
    label = f"k{budget.tokens}" if budget.tokens is not None else said
    place = out if out is not None else default_directory(checkpoint, name, label)
    check_output(place, force=force)
    among = serving(geometry, budget, recipe.positions) if name == "auto" else None
    method = method_of(name, recipe.method.parameters) if name != "auto" else None
    if method is not None and _reads_pixels(method, geometry, recipe.positions):
        _check_pixels(checkpoint, geometry)
    with open_bench(checkpoint, geometry, asked, place, how) as bench:
        check = check_capture(bench)
        if among is not None:
            choice = best_method(bench, among, recipe.positions)
        else:
            assert budget.max_loss is not None and method is not None
            choice = smallest_count(bench, method, budget.max_loss, recipe.positions)
        asked_for = {"name": name, "params": recipe.method.parameters}
        frozen, record = None, bench.record | {"asked": asked_for} | choice.record
        method = choice.method
        if leaves_open(method, geometry, choice.tokens):
            method, frozen, more = fixed(bench, method, choice.tokens, recipe.positions)
            record = more | record
    made = Settled(method=method, tokens=choice.tokens, frozen=frozen, record=record, checks=(check,))
    return made, place


def _several(
    recipe: Recipe, checkpoint: Checkpoint, geometry: Geometry, out: Path | None, force: bool, how: How
) -> tuple[Settled, Path]:
    """A method at every count of a set, and the router among them."""
    counts, asked = recipe.budget.several, recipe.calibration
    assert asked is not None
    method = method_of(recipe.method.name, recipe.method.parameters)
    label = f"k{'-'.join(map(str, counts))}"
    place = out if out is not None else default_directory(checkpoint, recipe.method.name, label)
    check_output(place, force=force)
    if any("pixels" in stage.reads for stage in planned(method, geometry, counts[0], None, recipe.positions)):
        _check_pixels(checkpoint, geometry)
    with open_bench(checkpoint, geometry, asked, place, how) as bench:
        check = check_capture(bench)
        routed = route(bench, method, recipe.positions, counts, recipe.budget.mean)
    most = routed.parts[-1]
    record = bench.record | (most.record or {})
    made = Settled(method=method, tokens=most.tokens, frozen=most.frozen, record=record, checks=(check,), routed=routed)
    return made, place


def _reads_pixels(method: Method, geometry: Geometry, positions: str) -> bool:
    """Whether a method whose count is open reads pixels, at the first count that it can plan."""
    for count in range(geometry.total - 1, 0, -1):
        with suppress(MethodError):
            return any("pixels" in stage.reads for stage in planned(method, geometry, count, None, positions))
    return False


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


def _check_plan(
    recipe: Recipe, checkpoint: Checkpoint, method: Method, geometry: Geometry, tokens: int, wanted: Search | None
) -> None:
    """Refuses before anything is read what cannot be planned, and samples that are missing or for nothing."""
    learns = tokens < geometry.total and method.learns(geometry, tokens)
    trained = method.trainable(geometry, tokens) is not None
    if learns and recipe.calibration is None:
        raise MethodError(
            f"method {recipe.method.name} learns its {'module' if trained else 'merge'} from samples; pass --samples "
            "(the bundled scenes, a folder of images, or a JSONL file)"
        )
    if recipe.calibration is not None and recipe.calibration.steps is not None and not trained:
        raise MethodError(
            f"method {recipe.method.name} trains nothing, and steps={recipe.calibration.steps} is about training; "
            "leave --steps out"
        )
    if not learns:
        stages = planned(method, geometry, tokens, None, recipe.positions)
        if any("pixels" in stage.reads for stage in stages) or (wanted is not None and wanted.reads_pixels(geometry)):
            _check_pixels(checkpoint, geometry)
        left = method.dynamic() is not None or method.decides(geometry, tokens) is not None
        if recipe.calibration is not None and wanted is None and not left:
            raise MethodError(
                f"method {recipe.method.name} leaves nothing open to calibrate with these parameters; "
                "leave --samples out"
            )
