"""Which method, with how many tokens, can meet a wish for the time to the first token on a board.

Every method is planned with its own defaults at every count that the project rounds to; of those whose least time
(roofline.py) is no longer than the wish, the largest count is told. A larger one cannot meet the wish, as long as fewer
tokens need no more time, which rounding inside a method may break by a step; the one that is told may still miss it,
for no program reaches a roofline.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tokcarve.exporters.device.speeds import MODULES
from tokcarve.exporters.forecast import Setting, Side
from tokcarve.passes.budget import TILE
from tokcarve.passes.errors import BudgetError, ExportError, MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.methods import METHODS
from tokcarve.passes.stage import Method, Stage
from tokcarve.passes.taps import needs_cls
from tokcarve.recipes.budgets import stages_at
from tokcarve.recipes.carve import check_stages

__all__ = ["Wished", "chosen_count", "largest_counts", "where", "wished"]


@dataclass(frozen=True, kw_only=True)
class Wished:
    """A method, where it cuts, and by module the largest count that can meet the wish with its least time to the first
    token in milliseconds; None where no count can."""

    method: str
    where: str | None
    text_aware: bool
    counts: Mapping[str, tuple[int, float] | None]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        found = {
            module: None if one is None else {"tokens": one[0], "first_token_ms": one[1]}
            for module, one in self.counts.items()
        }
        return {"method": self.method, "where": self.where, "text_aware": self.text_aware, "counts": found}


def wished(setting: Setting, latency: float | int, methods: Mapping[str, Method] | None = None) -> tuple[Wished, ...]:
    """Every method (or those of `methods`), those that keep the most first; ExportError for a wish that is none, and
    for a board without published figures."""
    if not 0 < latency < float("inf"):
        raise ExportError(f"--latency {latency:g} is no time; give milliseconds above 0")
    if setting.target is None or not setting.modules:
        known = ", ".join(dict.fromkeys(one.board for one in MODULES))
        said = f"--target {setting.target.text} has no published peaks" if setting.target else "no --target was named"
        raise ExportError(f"--latency {latency:g} is about a board, and {said}; give --target {known}")
    among = {name: kind() for name, kind in METHODS.items()} if methods is None else methods
    found = [_wished(name, method, setting, latency) for name, method in among.items()]
    return tuple(sorted((one for one in found if one is not None), key=_most, reverse=True))


def largest_counts(
    method: Method, setting: Setting, latency: float | int, positions: str = "renumbered"
) -> dict[str, tuple[int, float] | None]:
    """By module the largest count of `method` that can meet the wish, and its least time; MethodError where the method
    cannot serve the model at all. Fewer tokens are taken to need no more time."""
    geometry = setting.geometry
    if not geometry.vision.prefix and needs_cls(method.facts.reads):
        # refuses a tower without [CLS], which a plan that keeps all tokens would not
        check_stages(method, geometry, stages_at(method, geometry, TILE), positions)
    sides = _Sides(method, setting, positions)
    found: dict[str, tuple[int, float] | None] = {}
    for module in setting.modules:
        whole = sides.all()
        if whole is not None and (time := whole[1].times(module).first_token) <= latency:
            found[module.name] = (whole[0], time)
            continue
        # counts up to `low` steps can meet the wish, from `high` on they cannot
        low, high = 0, (geometry.total - 1) // TILE + 1
        while high - low > 1:
            middle = (low + high) // 2
            one = sides.below(middle)
            low, high = (middle, high) if one is None or one[1].times(module).first_token <= latency else (low, middle)
        best = sides.below(low)
        time = best[1].times(module).first_token if best is not None else 0.0
        found[module.name] = (best[0], time) if best is not None and time <= latency else None
    if not sides.possible:
        sides.check()
    return found


class _Sides:
    """What a method costs at the counts that shares are rounded to, steps of `TILE`, planned as they are asked for."""

    def __init__(self, method: Method, setting: Setting, positions: str) -> None:
        self.method, self.setting, self.positions = method, setting, positions
        self.planned: dict[int, Side | None] = {}

    def below(self, step: int) -> tuple[int, Side] | None:
        """The largest count of at most so many steps that the method can plan, and what it costs; None without any."""
        for count in range(step * TILE, 0, -TILE):
            side = self._at(count)
            if side is not None:
                return count, side
        return None

    def all(self) -> tuple[int, Side] | None:
        """The same with all tokens; None where the method cannot plan that."""
        total = self.setting.geometry.total
        side = self._at(total)
        return None if side is None else (total, side)

    @property
    def possible(self) -> bool:
        """Whether any count that was asked for could be planned."""
        return any(side is not None for side in self.planned.values())

    def check(self) -> None:
        """MethodError where the method cannot plan even all tokens."""
        geometry = self.setting.geometry
        stages = stages_at(self.method, geometry, geometry.total)
        check_stages(self.method, geometry, stages, self.positions)

    def _at(self, count: int) -> Side | None:
        if count not in self.planned:
            side = None
            with suppress(MethodError):
                stages = stages_at(self.method, self.setting.geometry, count)
                check_stages(self.method, self.setting.geometry, stages, self.positions)
                side = self.setting.side(stages)
            self.planned[count] = side
        return self.planned[count]


def where(stages: Sequence[Stage], geometry: Geometry) -> str:
    """Where stages cut, in words: before the tower, in it, behind it, in the language model."""
    last, found = f"vision.layers.{geometry.vision.layers_used - 1}", []
    for stage in stages:
        if stage.site == "pixels":
            found.append("before the tower")
        elif stage.site.startswith("language."):
            found.append("in the language model")
        else:
            found.append("behind the tower" if stage.site in (last, "connector") else "in the tower")
    if "in the tower" in found:
        # the cut behind its last layer belongs to the others
        found = [one for one in found if one != "behind the tower"]
    return " and ".join(dict.fromkeys(found)) or "nowhere"


def chosen_count(name: str, method: Method, setting: Setting, latency: float | int, positions: str) -> int:
    """The largest count of one method on the largest module of the board; BudgetError where none can meet the wish."""
    module = setting.modules[0]
    found = largest_counts(method, setting, latency, positions)[module.name]
    if found is None:
        raise BudgetError(
            f"--latency {latency:g} cannot be met by {name} on {module.name} in {setting.precision}, at no count that "
            "it can plan (the unpruned model takes at least "
            f"{setting.side(()).times(module).first_token:.1f} ms to its first token); wish for more time, or take "
            "another method, fewer bytes per weight (--precision int4), a smaller model or a faster board"
        )
    return found[0]


def _wished(name: str, method: Method, setting: Setting, latency: float | int) -> Wished | None:
    try:
        counts = largest_counts(method, setting, latency)
    except MethodError:
        return None
    most = max((one[0] for one in counts.values() if one is not None), default=None)
    place = None if most is None else where(stages_at(method, setting.geometry, most), setting.geometry)
    return Wished(method=name, where=place, text_aware=method.facts.text_aware, counts=counts)


def _most(one: Wished) -> int:
    return max((found[0] for found in one.counts.values() if found is not None), default=0)
