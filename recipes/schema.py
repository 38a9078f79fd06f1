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
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from tokcarve.recipes.method_recipes import AnyMethod
from tokcarve.recipes.recipe_parts import Closed, Seed

__all__ = ["BUDGETS", "Budget", "BudgetName", "Calibration", "Recipe", "nearest"]


BudgetName = Literal["keep", "tokens", "avg_tokens", "kv_mib", "prefill_flops"]
TEXT_ROWS = 64
BUDGETS: tuple[BudgetName, ...] = get_args(BudgetName)


class Budget(Closed):
    """What was asked for: exactly one of

    keep            share in (0, 1] of the visual tokens that is left behind the last stage
    tokens          count that is left there
    avg_tokens      mean count over the layers of the language model; the nearest that the schedule reaches
    kv_mib          most MiB of fp16 keys and values, visual tokens and `max_text` + `max_new` rows of text
    prefill_flops   most FLOPs (2 per multiply-add) of a prefill with `max_text` rows of text

    where 64 rows of each are meant unless told.
    """

    keep: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    tokens: Annotated[int, Field(ge=1)] | None = None
    avg_tokens: Annotated[int, Field(ge=1)] | None = None
    kv_mib: Annotated[float | int, Field(gt=0, allow_inf_nan=False)] | None = None
    prefill_flops: Annotated[float | int, Field(gt=0, allow_inf_nan=False)] | None = None
    max_text: Annotated[int, Field(ge=1)] | None = None
    max_new: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> "Budget":
        if len(self._given) != 1:
            raise ValueError(f"give exactly one of {', '.join(BUDGETS)}")
        return self

    @property
    def _given(self) -> dict[str, int | float]:
        return {name: value for name in BUDGETS if (value := getattr(self, name)) is not None}

    @property
    def asked(self) -> dict[Any, int | float]:
        """The one value that was given, under its name, and the rows of text that it was given for."""
        rows = {"kv_mib": ("max_text", "max_new"), "prefill_flops": ("max_text",)}.get(next(iter(self._given)), ())
        return self._given | {name: getattr(self, name) or TEXT_ROWS for name in rows}


class Calibration(Closed):
    """What a method is calibrated on: `scenes`, a folder of images, a JSONL file or a dataset on disk, and how many
    samples of it; quantile: of the counts of all samples, where their mean is not wanted."""

    samples: Annotated[str, Field(min_length=1)] = "scenes"
    count: Annotated[int, Field(ge=1)] = 64
    seed: Seed = 0
    quantile: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None


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
