"""The recipe entry of every method: its name, and hyper-parameters with the fields and defaults of its dataclass.

A new method adds one class, and its place in a union, in encoder_recipes.py or language_recipes.py.
"""

from typing import Literal, get_args

from tokcarve.recipes.encoder_recipes import EncoderMethod
from tokcarve.recipes.language_recipes import LanguageMethod
from tokcarve.recipes.recipe_parts import MethodRecipe

__all__ = ["METHOD_RECIPES", "AnyMethod", "AutoRecipe"]


class AutoRecipe(MethodRecipe):
    """The method that comes nearest to the full model at the budget, on samples; see calibration/auto.py."""

    name: Literal["auto"] = "auto"


AnyMethod = EncoderMethod | LanguageMethod

METHOD_RECIPES: dict[str, type[MethodRecipe]] = {
    model.model_fields["name"].default: model for model in get_args(AnyMethod)
}
"""The entry of every method by its name, without importing what it does."""
