"""What a budget comes to: the count behind the last stage, found by planning the method's schedule for every count."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tokcarve.passes.budget import count_for
from tokcarve.passes.errors import BudgetError, MethodError
from tokcarve.passes.flops import count_flops, kv_bytes, rows_of
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.stage import Method, Stage
from tokcarve.recipes.schema import Budget

__all__ = ["mean_tokens", "resolve_budget", "stages_at", "stored_rows", "within"]

MIB = 2.0**20


@dataclass(frozen=True)
class _Wish:
    """One kind of budget: what a schedule comes to, in words, and whether that may not be more than was asked."""

    measure: Callable[[Sequence[Stage]], float | int]
    words: str
    limit: bool


def resolve_budget(budget: Budget, method: Method, geometry: Geometry) -> int:
    """The count of visual tokens behind the last stage; BudgetError, with what can be reached, where none fits."""
    if budget.keep is not None or budget.tokens is not None:
        keep, tokens = budget.keep, budget.tokens
        assert keep != "auto" and not isinstance(tokens, tuple), "what samples or a router decide is no count yet"
        return count_for(keep=keep, tokens=tokens, total=geometry.total)
    name, asked = next(iter(budget.asked.items()))
    wish = _wish(name, budget, geometry)
    reached = _reached(method, geometry, wish)
    least, most = min(reached.values()), max(reached.values())
    title = method.facts.title
    if asked < least or asked > most:
        low, high = (_spelled(name, value) for value in (least, most))
        text = _text_alone(name, budget, geometry, asked)
        raise BudgetError(
            f"{name}={asked} cannot be reached by {title} on this model, whose schedules come to {low}..{high} "
            f"{wish.words}{text}; choose within that range, or a method that cuts earlier"
        )
    if wish.limit:
        return max(count for count, value in reached.items() if value <= asked)
    return min(reached, key=lambda count: (abs(reached[count] - asked), count))


def mean_tokens(method: Method, geometry: Geometry, tokens: int) -> float:
    """Visual tokens per layer of the language model."""
    return float(_wish("avg_tokens", Budget(avg_tokens=1), geometry).measure(stages_at(method, geometry, tokens)))


def within(budget: Budget, method: Method, geometry: Geometry, tokens: int) -> bool:
    """Whether a schedule keeps to a budget that says how much at most; True of other budgets."""
    name, asked = next(iter(budget.asked.items()))
    if name not in ("kv_mib", "prefill_flops"):
        return True
    return bool(_wish(name, budget, geometry).measure(stages_at(method, geometry, tokens)) <= asked)


def _wish(name: str, budget: Budget, geometry: Geometry) -> _Wish:
    def mean(stages: Sequence[Stage]) -> float:
        rows = rows_of(geometry, stages, 0).text
        return sum(rows) / len(rows)

    text, new = (budget.asked.get(rows, 0) for rows in ("max_text", "max_new"))

    def kv(stages: Sequence[Stage]) -> float:
        return kv_bytes(geometry.text, [rows + int(text + new) for rows in stored_rows(geometry, stages)]) / MIB

    def flops(stages: Sequence[Stage]) -> int:
        return count_flops(geometry, rows_of(geometry, stages, int(text))).prefill

    given = f"with {text} rows of text"
    return {
        "avg_tokens": _Wish(mean, "visual tokens per layer", limit=False),
        "kv_mib": _Wish(kv, f"MiB of fp16 keys and values {given} and {new} new", limit=True),
        "prefill_flops": _Wish(flops, f"FLOPs {given}", limit=True),
    }[name]


def _reached(method: Method, geometry: Geometry, wish: _Wish) -> Mapping[int, float | int]:
    """What every count that the method can plan comes to."""
    found: dict[int, float | int] = {}
    refused: MethodError | None = None
    for count in range(1, geometry.total + 1):
        try:
            found[count] = wish.measure(stages_at(method, geometry, count))
        except MethodError as error:
            refused = error
    if refused is not None and set(found) <= {geometry.total}:
        raise refused
    return found


def stages_at(method: Method, geometry: Geometry, count: int) -> list[Stage]:
    """The reductions that `method` plans down to `count` tokens before samples were seen; MethodError where none."""
    if method.fit(geometry, count) is not None:
        # what is learned is one merge before the language model, which samples have yet to fill
        return [Stage(site="connector", how="merge", keep=count)]
    trainee = method.trainable(geometry, count)
    stages = method.stages(geometry, count, None) if trainee is None else trainee.stages(trainee.blank())
    return [stage for stage in stages if stage.how != "observe"]


def stored_rows(geometry: Geometry, stages: Sequence[Stage]) -> list[int]:
    """Visual rows whose keys and values each language layer keeps."""
    rows = list(rows_of(geometry, stages, 0).text)
    for stage in stages:
        if stage.cuts_cache:
            behind = int(stage.site.rpartition(".")[2]) + 1
            rows[:behind] = [stage.keep] * behind
    return rows


def _text_alone(name: str, budget: Budget, geometry: Geometry, asked: float | int) -> str:
    rows = int(sum(budget.asked.get(rows, 0) for rows in ("max_text", "max_new")))
    need = kv_bytes(geometry.text, (rows,) * geometry.text.layers) / MIB
    if name != "kv_mib" or asked >= need:
        return ""
    return f" (text alone needs {need:.2f} MiB)"


def _spelled(name: str, value: float | int) -> str:
    return f"{value:.3g}" if name == "prefill_flops" else f"{value:.4g}"
