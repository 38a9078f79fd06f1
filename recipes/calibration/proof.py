"""What freezing costs: the frozen form beside the one that decides per image, on samples held out."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from tokcarve.passes.stage import Frozen, Method
from tokcarve.recipes.calibration.bench import Bench
from tokcarve.recipes.calibration.decide import looks_of
from tokcarve.recipes.calibration.freeze import tuned
from tokcarve.recipes.calibration.intervals import paired, share
from tokcarve.recipes.calibration.work import Candidate
from tokcarve.recipes.carve import name_of, params_of

__all__ = ["fixed", "prove"]


def fixed(bench: Bench, method: Method, tokens: int, positions: str) -> tuple[Method, Frozen | None, dict[str, Any]]:
    """`method` with its open parameters decided, what is frozen beside them, and a record of both with what they cost.

    MethodError for a method that leaves nothing open.
    """
    settled, frozen, record = tuned(bench, method, tokens, positions)
    if frozen is None or not frozen.tensors:
        record["proof"] = prove(bench, method, settled, tokens, frozen, positions)
    return settled, frozen, record


def prove(
    bench: Bench, method: Method, settled: Method, tokens: int, frozen: Frozen | None, positions: str
) -> dict[str, Any]:
    """Compares `settled` (with `frozen`) with `method` deciding per image, or where it cannot, without samples.

    Of each the loyalty (share of samples whose first tokens are the full model's), the mean divergence from it in nats
    and, where samples bring answers, the accuracy; and their paired differences, frozen less the other.
    """
    counts = dict(frozen.counts) if frozen is not None and frozen.counts else None
    fixed = _candidate(settled, tokens, positions) | {"counts": counts}
    against, others = _others(bench, method, settled, tokens, positions)
    pairs = [[fixed, other] for other in others]
    alike = _map(bench, "likeness", pairs, "measuring what freezing costs")
    right = _map(bench, "right", pairs, "answering held-out questions")
    seed = bench.set.seed
    found: dict[str, Any] = {"against": against, "samples": len(pairs)}
    found["loyalty"] = _both([[one["same"] for one in pair] for pair in alike], seed, hits=True)
    found["kl"] = _both([[one["kl"] for one in pair] for pair in alike], seed, hits=False)
    answered = [pair for pair in right if pair is not None]
    if answered:
        found["accuracy"] = _both(answered, seed, hits=True)
    return found


def _map(bench: Bench, do: str, pairs: Sequence[Any], what: str) -> list[Any]:
    tasks = [{"do": do, "sample": i, "candidates": pair} for i, pair in zip(bench.held, pairs, strict=True)]
    return [record[do] for record in bench.runner.map(tasks, what)]


def _candidate(method: Method, tokens: int, positions: str) -> dict[str, Any]:
    return Candidate(method=name_of(method), params=params_of(method), tokens=tokens, positions=positions).plain()


def _others(
    bench: Bench, method: Method, settled: Method, tokens: int, positions: str
) -> tuple[str, list[dict[str, Any]]]:
    """What the frozen form is compared with, and a candidate for every held-out sample."""
    # what samples settled for all images, a form that decides per image has too
    dynamic = settled.dynamic()
    if dynamic is not None:
        return "the form that decides per image", [_candidate(dynamic, tokens, positions)] * len(bench.held)
    decision = method.decides(bench.geometry, tokens, bench.quantile)
    if decision is not None and decision.each:
        looks = looks_of(bench, decision, method, tokens, positions, bench.held)
        own = (decision.settle([look])[0] for look in looks)
        return "the form that decides per image", [_candidate(one, tokens, positions) for one in own]
    return "its defaults", [_candidate(method, tokens, positions)] * len(bench.held)


def _both(pairs: Sequence[Sequence[int | float]], seed: int, *, hits: bool) -> dict[str, Any]:
    frozen, other = ([float(pair[i]) for pair in pairs] for i in range(2))
    value: Callable[[list[float]], Any] = share if hits else lambda values: math.fsum(values) / len(values)
    return {"frozen": value(frozen), "other": value(other), "difference": paired(frozen, other, seed)}
