"""What a method's parameters leave open, settled by samples: looked at, counted or tried in rounds, and then fixed."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tokcarve.passes.stage import Decision, Look, Method
from tokcarve.recipes.calibration.bench import Bench
from tokcarve.recipes.calibration.work import Candidate
from tokcarve.recipes.carve import name_of, params_of

__all__ = ["decide", "looks_of"]


def decide(bench: Bench, method: Method, tokens: int, positions: str) -> tuple[Method, dict[str, Any]]:
    """`method` with what samples say of its open parameters, and a record of it; as it is where nothing is open."""
    decision = method.decides(bench.geometry, tokens, bench.quantile)
    if decision is None:
        return method, {}
    settled, spread = decision.settle(looks_of(bench, decision, method, tokens, positions, bench.learning))
    before, after = params_of(method), params_of(settled)
    fixed = {name: value for name, value in after.items() if value != before[name]}
    by = "mean" if bench.quantile is None or not decision.by_quantile else f"quantile {bench.quantile}"
    about = {"fixed": fixed, "by": by, "spread": spread, "samples": len(bench.learning)}
    return settled, {"asked": {"name": name_of(method), "params": before}, "decided": about}


def looks_of(
    bench: Bench, decision: Decision, method: Method, tokens: int, positions: str, samples: Sequence[int]
) -> list[Look]:
    """What `decision` of `method` looks at in every one of `samples`, all its rounds."""

    def plain(one: Method) -> dict[str, Any]:
        return Candidate(method=name_of(one), params=params_of(one), tokens=tokens, positions=positions).plain()

    looks = [Look() for _ in samples]
    if decision.stages():
        tasks = [{"do": "looked", "sample": sample, "candidate": plain(method)} for sample in samples]
        looks = [Look(seen=record["seen"]) for record in bench.runner.map(tasks, "looking at what is open")]
    number = 0
    while (form := decision.counting(looks)) is not None:
        number += 1
        tasks = [{"do": "counts", "sample": sample, "candidate": plain(form)} for sample in samples]
        records = bench.runner.map(tasks, f"counting what passes, round {number}")
        looks = [replace(look, counted=[*look.counted, record]) for look, record in zip(looks, records, strict=True)]
    number = 0
    while variants := decision.tries(looks):
        number += 1
        candidates = [plain(one) for one in variants]
        tasks = [{"do": "tried", "sample": sample, "candidates": candidates} for sample in samples]
        records = bench.runner.map(tasks, f"trying {len(variants)} variants, round {number}")
        looks = [
            replace(look, tried=[*look.tried, record["tried"]]) for look, record in zip(looks, records, strict=True)
        ]
    return looks
