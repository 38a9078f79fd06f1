"""A recipe from separate values, with refusals that name the nearest right word."""

from collections.abc import Mapping
from typing import Any

from tokcarve.passes.errors import BudgetError, MethodError
from tokcarve.recipes.files import parse_recipe
from tokcarve.recipes.schema import METHOD_RECIPES, Recipe, nearest

__all__ = ["make_recipe"]


def make_recipe(
    model: str,
    *,
    method: str,
    keep: float | int | None = None,
    tokens: int | None = None,
    params: Mapping[str, Any] | None = None,
    positions: str = "renumbered",
    samples: str | None = None,
    count: int | None = None,
    seed: int = 0,
    source: str = "arguments",
) -> Recipe:
    """A recipe from separate values, as the command line and `tokcarve.compress` have them.

    `seed` serves the choice of samples, and the method where it draws at random. No `samples`: no calibration. Raises
    MethodError for an unknown method or parameter, BudgetError for a budget that fits no model, and RecipeError, with
    `source` before every fault, for values that do not fit.
    """
    _check_method(method, params or {})
    _check_budget(keep, tokens)
    chosen: dict[str, Any] = {"name": method, **(params or {})}
    if "seed" in METHOD_RECIPES[method].model_fields:
        chosen.setdefault("seed", seed)
    fields: dict[str, Any] = {"model": model, "method": chosen, "positions": positions}
    fields["budget"] = {"keep": keep} if keep is not None else {"tokens": tokens}
    if samples is not None:
        fields["calibration"] = {"samples": samples, "seed": seed, **({} if count is None else {"count": count})}
    return parse_recipe(fields, source)


def _check_method(method: str, params: Mapping[str, Any]) -> None:
    if method not in METHOD_RECIPES:
        raise MethodError(
            f"unknown method {method!r}{nearest(method, METHOD_RECIPES)}; choose one of {', '.join(METHOD_RECIPES)}"
        )
    known = [key for key in METHOD_RECIPES[method].model_fields if key != "name"]
    for key in params:
        if key not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise MethodError(f"unknown parameter {key!r} of {method}{nearest(key, known)}; {has}")


def _check_budget(keep: float | int | None, tokens: int | None) -> None:
    """The refusals that need no model, so that they come before anything is loaded."""
    if keep is not None and tokens is not None:
        raise BudgetError(f"both keep={keep} and tokens={tokens} were given; give one of them")
    if keep is None and tokens is None:
        raise BudgetError("no budget was given; give keep, a share in (0, 1], or tokens, a count of visual tokens")
    if keep is not None and not 0 < keep <= 1:
        raise BudgetError(f"keep={keep} is not a share of the visual tokens; choose above 0 and at most 1")
    if tokens is not None and tokens < 1:
        raise BudgetError(f"tokens={tokens} is not a count of visual tokens; choose 1 or more, up to the model's total")
