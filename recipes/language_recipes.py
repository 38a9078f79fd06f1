"""The recipe entries of methods that reduce tokens, or the work on them, in the language model."""

from typing import Literal

from tokcarve.recipes.recipe_parts import Count, MethodRecipe

__all__ = ["FastVRecipe", "LanguageMethod"]


class FastVRecipe(MethodRecipe):
    """FastV; see passes/methods/fastv.py."""

    name: Literal["fastv"] = "fastv"
    layer: Count = 2


LanguageMethod = FastVRecipe
"""Any of them."""
