"""The flags of `compress` as a recipe; every refusal names the flag."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokcarve.passes.errors import BudgetError, MethodError, RecipeError

if TYPE_CHECKING:
    from tokcarve.recipes.schema import Recipe

__all__ = ["plan_recipe_of", "recipe_of"]

BUDGET = ("keep", "max_loss", "tokens", "mean_tokens", "avg_tokens", "kv_mib", "prefill_flops", "max_text", "max_new")
SAMPLES = {"limit": "count", "quantile": "quantile", "trials": "trials", "steps": "steps"}
"""What is said of samples: the flag, and its name in a recipe."""
_ROWS = {"max_text": {"kv_mib", "prefill_flops"}, "max_new": {"kv_mib"}}


def recipe_of(given: Mapping[str, Any]) -> "Recipe":
    """The recipe that the flags (by their names in Python) describe, or name with `recipe`."""
    method, model, recipe, param = (given[name] for name in ("method", "model", "recipe", "param"))
    if recipe is not None:
        said = {name: given[name] for name in ("method", "samples", *SAMPLES, *BUDGET)}
        changed = {"--positions": given["positions"] != "renumbered", "--seed": given["seed"] != 0, "--param": param}
        return _from_file(recipe, model, {**_spelled(said), **changed})

    from tokcarve.recipes.make import make_recipe
    from tokcarve.recipes.method_recipes import METHOD_RECIPES
    from tokcarve.recipes.schema import learns

    if model is None:
        raise RecipeError("no model was named; give a directory, a hub id or an alias such as tiny, or a --recipe")
    if method is None:
        raise MethodError(f"no method was named; give --method with one of {', '.join(METHOD_RECIPES)}")
    budget = {name: given[name] for name in BUDGET}
    budget |= {"tokens": _counts(given["tokens"]), "keep": _share(given["keep"])}
    for flag in SAMPLES:
        if given[flag] is not None and given["samples"] is None and not learns(method, budget):
            raise RecipeError(f"--{flag} {given[flag]} is about samples, and there are none; give --samples as well")
    return make_recipe(
        model,
        method=method,
        params=_params(param or []),
        positions=given["positions"],
        seed=given["seed"],
        samples=given["samples"],
        source="command line",
        **{SAMPLES[flag]: given[flag] for flag in SAMPLES},
        **budget,
    )


def plan_recipe_of(given: Mapping[str, Any]) -> "tuple[Recipe | None, bool]":
    """The recipe that the flags of `plan` describe, and whether they say its count; None where only a wish for latency
    is asked about. Rows of text are the budget's where it is about them, and else only those of the plan."""
    from tokcarve.recipes.schema import BUDGETS

    named = [name for name in BUDGETS if given[name] is not None]
    if given["method"] is None and given["recipe"] is None and not named and given["latency"] is not None:
        if given["model"] is None:
            raise RecipeError("no model was named; give a directory, a hub id or an alias such as llava-1.5-7b")
        for flag, default in {"param": None, "positions": "renumbered"}.items():
            if given[flag] and given[flag] != default:
                raise RecipeError(
                    f"--{flag} is about one method, and none was named; give --method or --recipe as well"
                )
        return None, False
    if given["keep"] == "auto":
        raise BudgetError("--keep auto is a count that samples decide, and a plan reads none; give a share or a count")
    counted = bool(named) or given["recipe"] is not None or given["latency"] is None
    rows = {name: given[name] if set(named) & of else None for name, of in _ROWS.items()}
    open_count = {} if counted else {"tokens": "1"}
    usual = dict.fromkeys((*BUDGET, *SAMPLES, "samples")) | {"seed": 0}
    return recipe_of({**usual, **given, **rows, **open_count}), counted


def _from_file(name: str, model: str | None, given: dict[str, Any]) -> "Recipe":
    from tokcarve.recipes.files import load_recipe, shipped_recipes

    for flag, value in given.items():
        if value:
            raise RecipeError(f"{flag} was given together with --recipe {name}, which already says it; leave one out")
    recipe = load_recipe(shipped_recipes().get(name, Path(name)))
    return recipe if model is None else recipe.model_copy(update={"model": model})


def _counts(text: str | None) -> int | tuple[int, ...] | None:
    """64 or 64,128,192 as numbers; BudgetError for anything else."""
    try:
        counts = tuple(int(one) for one in text.split(",")) if text is not None else ()
    except ValueError:
        raise BudgetError(
            f"--tokens {text} is no count of visual tokens; give one such as 64, or several such as 64,128,192"
        ) from None
    return counts if len(counts) > 1 else next(iter(counts), None)


def _share(text: str | None) -> float | str | None:
    """0.11 as a number, or auto; BudgetError for anything else."""
    if text is None or text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise BudgetError(f"--keep {text} is neither a share of the visual tokens in (0, 1] nor auto") from None


def _spelled(flags: dict[str, Any]) -> dict[str, Any]:
    return {f"--{name.replace('_', '-')}": value for name, value in flags.items()}


def _params(given: list[str]) -> dict[str, Any]:
    params = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise MethodError(f"--param {text!r} is not name=value; write it as --param form=exact")
        if name in params:
            raise MethodError(f"--param {name} was given twice; give it once")
        try:
            params[name] = json.loads(value)
        except ValueError:
            params[name] = value
    return params
