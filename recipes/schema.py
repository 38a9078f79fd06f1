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

from pydantic import Discriminator, Field, Tag, model_validator

from tokcarve.recipes.method_recipes import AnyMethod, AutoRecipe
from tokcarve.recipes.recipe_parts import Closed, Count, Counts, Names, Seed

__all__ = ["BUDGETS", "Budget", "BudgetName", "Calibration", "Recipe", "learns", "nearest"]


BudgetName = Literal["keep", "tokens", "avg_tokens", "kv_mib", "prefill_flops"]
TEXT_ROWS = 64
MANY = 160
"""Samples unless told where a router learns or methods are told apart: of 64 both learn little."""
BUDGETS: tuple[BudgetName, ...] = get_args(BudgetName)
Keep = Annotated[
    Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), Tag("share")] | Annotated[Literal["auto"], Tag("auto")],
    Discriminator(lambda value: "auto" if isinstance(value, str) else "share"),
]
Tokens = Annotated[
    Annotated[Count, Tag("one")] | Annotated[Counts, Tag("several")],
    Discriminator(lambda value: "several" if isinstance(value, list | tuple) else "one"),
]


class Budget(Closed):
    """What was asked for: exactly one of

    keep            share in (0, 1] of the visual tokens that is left behind the last stage, or `auto`: the smallest
                    count whose loss on samples stays within `max_loss`
    tokens          count that is left there; several counts make a budget set, one of which is chosen per image so that
                    they come to `mean_tokens` on average (the middle one unless told)
    avg_tokens      mean count over the layers of the language model; the nearest that the schedule reaches
    kv_mib          most MiB of fp16 keys and values, visual tokens and `max_text` + `max_new` rows of text
    prefill_flops   most FLOPs (2 per multiply-add) of a prefill with `max_text` rows of text

    where 64 rows of each are meant unless told.
    """

    keep: Keep | None = None
    max_loss: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    tokens: Tokens | None = None
    avg_tokens: Annotated[int, Field(ge=1)] | None = None
    kv_mib: Annotated[float | int, Field(gt=0, allow_inf_nan=False)] | None = None
    prefill_flops: Annotated[float | int, Field(gt=0, allow_inf_nan=False)] | None = None
    max_text: Annotated[int, Field(ge=1)] | None = None
    max_new: Annotated[int, Field(ge=1)] | None = None
    mean_tokens: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> "Budget":
        if len(self._given) != 1:
            raise ValueError(f"give exactly one of {', '.join(BUDGETS)}")
        if (self.keep == "auto") != (self.max_loss is not None):
            raise ValueError("keep: auto and max_loss belong together; give both or none")
        if self.mean_tokens is not None and not self.several:
            raise ValueError(f"mean_tokens={self.mean_tokens} is about several counts; give two or more in tokens")
        if self.mean_tokens is not None and not self.several[0] <= self.mean_tokens <= self.several[-1]:
            raise ValueError(
                f"mean_tokens={self.mean_tokens} is no mean of {', '.join(map(str, self.several))} tokens; choose "
                f"{self.several[0]}..{self.several[-1]}"
            )
        return self

    @property
    def several(self) -> tuple[int, ...]:
        """The counts of a budget set, rising; empty where there is one budget."""
        return self.tokens if isinstance(self.tokens, tuple) else ()

    @property
    def mean(self) -> int:
        """What the counts of a budget set come to on average: what was asked for, or the middle one."""
        middle = (self.several[(len(self.several) - 1) // 2] + self.several[len(self.several) // 2]) // 2
        return middle if self.mean_tokens is None else self.mean_tokens

    @property
    def _given(self) -> dict[str, Any]:
        return {name: value for name in BUDGETS if (value := getattr(self, name)) is not None}

    @property
    def asked(self) -> dict[Any, Any]:
        """The one value that was given, under its name, with the rows of text or the mean that it was given for."""
        if self.several:
            return {"tokens": self.several, "mean_tokens": self.mean}
        rows = {"kv_mib": ("max_text", "max_new"), "prefill_flops": ("max_text",)}.get(next(iter(self._given)), ())
        loss = {} if self.max_loss is None else {"max_loss": self.max_loss}
        return self._given | loss | {name: getattr(self, name) or TEXT_ROWS for name in rows}


class Calibration(Closed):
    """What a method is calibrated on: `scenes`, a folder of images, a JSONL file or a dataset on disk, and how many
    samples of it; quantile: of the counts of all samples, where their mean is not wanted; trials: points that a search
    for hyper-parameters tries, 50 unless told; pinned: hyper-parameters that it leaves alone though they stand at their
    defaults (others it leaves alone anyway); steps: of training, where the method trains a module, 512 unless told."""

    samples: Annotated[str, Field(min_length=1)] = "scenes"
    count: Annotated[int, Field(ge=1)] = 64
    seed: Seed = 0
    quantile: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    trials: Count | None = None
    steps: Count | None = None
    pinned: Names | None = None


class Recipe(Closed):
    """All that `compress` needs to make an artifact again; relative paths start at the working directory."""

    format: Literal[1] = 1
    model: Annotated[str, Field(min_length=1)]
    method: Annotated[AnyMethod | AutoRecipe, Field(discriminator="name")]
    budget: Budget
    positions: Literal["renumbered", "original"] = "renumbered"
    calibration: Calibration | None = None

    @model_validator(mode="before")
    @classmethod
    def _learns(cls, fields: Any) -> Any:
        """What cannot be decided without samples is decided on the bundled scenes unless told."""
        match fields:
            case {"budget": dict() as budget, "method": dict() as method} if learns(method.get("name"), budget):
                asked = fields.get("calibration", {})
                if isinstance(asked, dict):
                    many = method.get("name") == "auto" or isinstance(budget.get("tokens"), list | tuple)
                    usual = {"samples": "scenes", **({"count": MANY} if many else {})}
                    return {**fields, "calibration": usual | asked}
        return fields


def learns(method: object, budget: Mapping[str, Any]) -> bool:
    """Whether samples decide the method or the count: `auto`, or which of several counts an image gets."""
    return method == "auto" or budget.get("keep") == "auto" or isinstance(budget.get("tokens"), list | tuple)


def nearest(name: str, known: Mapping[str, Any] | tuple[str, ...] | list[str]) -> str:
    """ ", did you mean 'x'" for the nearest of `known`, or nothing where none is near."""
    near = difflib.get_close_matches(name.lower().replace("-", "_"), list(known), n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}" if near else ""
