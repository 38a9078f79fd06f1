"""A recipe from separate values, with refusals that name the nearest right word."""

from collections.abc import Mapping, Sequence
from typing import Any

from tokcarve.passes.errors import BudgetError, MethodError
from tokcarve.recipes.files import parse_recipe
from tokcarve.recipes.method_recipes import METHOD_RECIPES
from tokcarve.recipes.schema import BUDGETS, Recipe, learns, nearest

__all__ = ["make_recipe"]


def make_recipe(
    model: str,
    *,
    method: str,
    params: Mapping[str, Any] | None = None,
    positions: str = "renumbered",
    samples: str | None = None,
    count: int | None = None,
    quantile: float | None = None,
    trials: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    source: str = "arguments",
    **budget: float | int | str | Sequence[int] | None,
) -> Recipe:
    """A recipe from separate values, as the command line and `tokcarve.compress` have them.

    `budget` is one of the names of tokcarve.recipes.schema.Budget and its value. `seed` serves the choice of samples,
    and the method where it draws at random. No `samples`: no calibration. Raises MethodError for an unknown method or
    parameter, BudgetError for a budget that fits no model, and RecipeError, with `source` before every fault, for
    values that do not fit.
    """
    _check_method(method, params or {})
    given = {name: value for name, value in budget.items() if value is not None}
    _check_budget(given)
    chosen: dict[str, Any] = {"name": method, **(params or {})}
    if method in METHOD_RECIPES and "seed" in METHOD_RECIPES[method].model_fields:
        chosen.setdefault("seed", seed)
    fields: dict[str, Any] = {"model": model, "method": chosen, "positions": positions}
    fields["budget"] = given
    if samples is not None or learns(method, given):
        more: dict[str, Any] = {"count": count, "quantile": quantile, "trials": trials, "steps": steps}
        more["pinned"] = _pinned(method, params or {}) or None
        fields["calibration"] = {"samples": samples or "scenes", "seed": seed}
        fields["calibration"] |= {name: value for name, value in more.items() if value is not None}
    return parse_recipe(fields, source)


def _pinned(method: str, params: Mapping[str, Any]) -> list[str]:
    """Parameters that were given at their defaults: a recipe that writes all of them out must say so."""
    known = METHOD_RECIPES[method].model_fields if params else {}
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in params.items()}
    return sorted(name for name, value in plain.items() if value == known[name].default)


def _is_set(given: Mapping[str, Any]) -> bool:
    return isinstance(given.get("tokens"), list | tuple)


def _check_method(method: str, params: Mapping[str, Any]) -> None:
    if method == "auto":
        if params:
            raise MethodError(f"method auto has no parameters, and {', '.join(params)} was given; name a method")
        return
    if method not in METHOD_RECIPES:
        raise MethodError(
            f"unknown method {method!r}{nearest(method, METHOD_RECIPES)}; choose one of {', '.join(METHOD_RECIPES)}, "
            "or auto"
        )
    known = [key for key in METHOD_RECIPES[method].model_fields if key != "name"]
    for key in params:
        if key not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise MethodError(f"unknown parameter {key!r} of {method}{nearest(key, known)}; {has}")


def _check_budget(given: Mapping[str, Any]) -> None:
    """Refuses here what needs no model, so that it comes before anything is loaded."""
    found = {name: given[name] for name in BUDGETS if name in given}
    if not found:
        raise BudgetError(f"no budget was given; give one of {', '.join(BUDGETS)}")
    if len(found) > 1:
        both = " and ".join(f"{name}={value}" for name, value in found.items())
        raise BudgetError(f"{'both' if len(found) == 2 else 'all of'} {both} were given; give one of them")
    name, value = next(iter(found.items()))
    loss = given.get("max_loss")
    if (value == "auto") != (loss is not None):
        said = "keep=auto was given alone" if loss is None else f"max_loss={loss} was given without keep=auto"
        raise BudgetError(f"{said}; give both, the smallest count whose loss stays within it, or neither")
    if value == "auto":
        if loss is None or not loss > 0:
            raise BudgetError(f"max_loss={loss} allows nothing; choose more than 0, such as 0.02")
        return
    if name == "keep" and not 0 < value <= 1:
        raise BudgetError(f"keep={value} is not a share of the visual tokens; choose above 0 and at most 1")
    several = _is_set(given)
    if name in ("tokens", "avg_tokens") and not several and value < 1:
        raise BudgetError(f"{name}={value} is not a count of visual tokens; choose 1 or more, up to the model's total")
    if not several and not value > 0:
        raise BudgetError(f"{name}={value} is nothing; choose more than 0")
    for rows, budgets in (("max_text", ("kv_mib", "prefill_flops")), ("max_new", ("kv_mib",))):
        if rows in given and name not in budgets:
            raise BudgetError(f"{rows}={given[rows]} says nothing beside {name}; it belongs to {' and '.join(budgets)}")
