"""What every recipe is made of: closed models, the kinds of their values, and what all methods have in common."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

__all__ = [
    "Closed",
    "Count",
    "Counts",
    "Layers",
    "Left",
    "Limits",
    "MethodRecipe",
    "Names",
    "NotNegative",
    "Order",
    "Positive",
    "Seed",
    "Share",
    "Shares",
]


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _rising(counts: tuple[int, ...]) -> tuple[int, ...]:
    if len(counts) < 2:
        raise ValueError(f"{list(counts)} is no set of budgets; give two or more counts, or one without brackets")
    twice = next((count for count in counts if counts.count(count) > 1), None)
    if twice is not None:
        raise ValueError(f"{twice} is there twice; give every count once")
    return tuple(sorted(counts))


Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Counts = Annotated[tuple[Count, ...], BeforeValidator(_as_tuple), AfterValidator(_rising)]
"""Two or more counts, all different, sorted; a list in YAML and JSON."""
Names = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], BeforeValidator(_as_tuple)]
"""Names; a list in YAML and JSON."""
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Order = Literal["raster", "published"]
Shares = Annotated[tuple[Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)], ...], BeforeValidator(_as_tuple)]
"""Shares above 0; a list in YAML, JSON and --param."""
Layers = Annotated[tuple[Annotated[int, Field(ge=0)], ...], BeforeValidator(_as_tuple)]
"""Layers of the tower or of the language model, 0-based; a list in YAML, JSON and --param."""
Left = Annotated[tuple[Count, ...], BeforeValidator(_as_tuple)]
"""Counts of tokens that are left, site after site; a list in YAML, JSON and --param."""
_Limit = Annotated[float, Field(allow_inf_nan=False)]
Limits = Annotated[tuple[_Limit, _Limit], BeforeValidator(_as_tuple)]
"""Two thresholds; a list in YAML, JSON and --param."""


class Closed(BaseModel):
    """A model of a recipe: no unknown keys, no conversions, no changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class MethodRecipe(Closed):
    """What every method's entry has: its name, and hyper-parameters as further keys."""

    name: str

    @property
    def parameters(self) -> dict[str, Any]:
        """The hyper-parameters, all of them, by name."""
        return {key: value for key, value in self.model_dump().items() if key != "name"}
