"""A plan: what a recipe would make of a model, or which methods could meet a wish, with nothing read but a config."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokcarve.exporters.forecast import Forecast, Setting
from tokcarve.exporters.wish import Wished, chosen_count
from tokcarve.passes.errors import RecipeError
from tokcarve.passes.stage import Method
from tokcarve.recipes.budgets import resolve_budget, stages_at
from tokcarve.recipes.carve import method_of, params_of, planned
from tokcarve.recipes.schema import Budget, Recipe, learns

__all__ = ["PlannedRecipe", "plan_recipe_in", "record_of", "with_count"]


@dataclass(frozen=True, kw_only=True)
class PlannedRecipe:
    """A recipe, its method, the count behind its last stage, and what that comes to."""

    recipe: Recipe
    method: Method
    tokens: int
    forecast: Forecast

    @property
    def notes(self) -> tuple[str, ...]:
        """What the figures do not know yet, a sentence each."""
        geometry, method = self.forecast.setting.geometry, self.method
        name, said = self.recipe.method.name, []
        if self.tokens < geometry.total and method.learns(geometry, self.tokens):
            said.append(f"{name} learns from samples, so that compress wants --samples")
        elif method.dynamic() is not None:
            said.append(f"samples may move tokens between the stages of {name}; these counts are assumed")
        elif method.decides(geometry, self.tokens) is not None:
            said.append(f"what {name} leaves open is assumed here; compress decides it by samples (--samples)")
        if self.forecast.boards:
            said.append(
                "least times are computed from peaks as NVIDIA's figures are quoted, not all of them looked up, which "
                "no program reaches; nothing was measured"
            )
        said.append("sizes leave out norms and biases, times the selection, which profile measures")
        return tuple(said)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "method": {"name": self.recipe.method.name, "params": params_of(self.method)},
            "budget": {
                "asked": dict(self.recipe.budget.asked),
                "tokens": self.tokens,
                "total": self.forecast.setting.geometry.total,
            },
            "positions": self.recipe.positions,
            **self.forecast.record(),
            "notes": list(self.notes),
        }


def plan_recipe_in(recipe: Recipe, setting: Setting) -> PlannedRecipe:
    """What `recipe` comes to in a setting.

    RecipeError where samples decide the method or the count, MethodError and BudgetError where it does not fit.
    """
    _check_decided(recipe)
    method = method_of(recipe.method.name, recipe.method.parameters)
    tokens = resolve_budget(recipe.budget, method, setting.geometry)
    if not method.learns(setting.geometry, tokens):
        planned(method, setting.geometry, tokens, None, recipe.positions)
    stages = stages_at(method, setting.geometry, tokens)
    forecast = Forecast(setting=setting, stages=tuple(stages))
    return PlannedRecipe(recipe=recipe, method=method, tokens=tokens, forecast=forecast)


def with_count(recipe: Recipe, setting: Setting, latency: float | int) -> Recipe:
    """The same recipe with the largest count that can meet a wish for the first token, in milliseconds."""
    _check_decided(recipe)
    method = method_of(recipe.method.name, recipe.method.parameters)
    count = chosen_count(recipe.method.name, method, setting, latency, recipe.positions)
    return recipe.model_copy(update={"budget": Budget(tokens=count)})


def record_of(
    model: str, made: PlannedRecipe | None, latency: float | int | None, found: tuple[Wished, ...]
) -> Mapping[str, Any]:
    """What `tokcarve plan --json` prints of a plan and of methods that can meet a wish; null where there is none."""
    wish = None if latency is None else {"latency_ms": latency, "methods": [one.record() for one in found]}
    return {"model": model, "plan": None if made is None else made.record(), "wish": wish}


def _check_decided(recipe: Recipe) -> None:
    if learns(recipe.method.name, recipe.budget.asked):
        raise RecipeError(
            "samples decide what this recipe comes to (method auto, keep auto or several counts), and a plan reads "
            "none; plan one method with one count"
        )
