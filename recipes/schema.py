"""A recipe: the whole of what was asked for, typed, closed and versioned; one fits on a screen.

    format: 1
    model: llava-1.5-7b
    method: {name: flowcut, form: static}
    budget: {tokens: 64}
    calibration: {samples: scenes, count: 64, seed: 0}

Methods are a union over `name`, so a parameter exists only where it means something; see method_recipes.py.
"""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from tokcarve.passes.budget import count_for
from tokcarve.recipes.method_recipes import AnyMethod, Closed, Seed

__all__ = ["Budget", "Calibration", "Recipe", "nearest"]


class Budget(Closed):
    """What was asked for: exactly one of a share `keep` in (0, 1], a count `tokens` of visual tokens, and their mean
    `avg_tokens` over the layers of the language model."""

    keep: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    tokens: Annotated[int, Field(ge=1)] | None = None
    avg_tokens: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> "Budget":
        if [self.keep, self.tokens, self.avg_tokens].count(None) != 2:
            raise ValueError("give exactly one of keep (a share in (0, 1]), tokens (a count) and avg_tokens (a mean)")
        return self

    def count(self, total: int) -> int:
        """The count of `total` visual tokens that this budget means; raises BudgetError where it does not fit."""
        # every method so far cuts before the language model, whose layers then all see the same count
        tokens = self.tokens if self.avg_tokens is None else self.avg_tokens
        return count_for(keep=self.keep, tokens=tokens, total=total)

    @property
    def asked(self) -> dict[Literal["keep", "tokens", "avg_tokens"], int | float]:
        """The one value that was given, under its name."""
        if self.avg_tokens is not None:
            return {"avg_tokens": self.avg_tokens}
        return {"tokens": self.tokens} if self.tokens is not None else {"keep": self.keep or 0.0}


class Calibration(Closed):
    """What a method is calibrated on: `scenes`, a folder of images or a JSONL file, and how many samples of it."""

    samples: Annotated[str, Field(min_length=1)] = "scenes"
    count: Annotated[int, Field(ge=1)] = 64
    seed: Seed = 0


class Recipe(Closed):
    """All that `compress` needs to make an artifact again; relative paths start at the working directory."""

    format: Literal[1] = 1
    model: Annotated[str, Field(min_length=1)]
    method: Annotated[AnyMethod, Field(discriminator="name")]
    budget: Budget
    positions: Literal["renumbered", "original"] = "renumbered"
    calibration: Calibration | None = None


def nearest(name: str, known: Mapping[str, Any] | tuple[str, ...] | list[str]) -> str:
    """ ", did you mean 'x'" for the nearest of `known`, or nothing where none is near."""
    near = difflib.get_close_matches(name.lower().replace("-", "_"), list(known), n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}" if near else ""
