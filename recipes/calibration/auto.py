"""`--keep auto`, the smallest count whose loss stays within a limit, and `--method auto`, the best method at a budget.

The loss of a carved model is what the first tokens of its answers lose against the full model's: their mean divergence
(KL, in nats per token), and the share of samples where those tokens are others (1 - loyalty). A limit holds for both.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tokcarve.passes.budget import TILE
from tokcarve.passes.calibrate import frozen_counts
from tokcarve.passes.errors import BudgetError, MethodError
from tokcarve.passes.flops import kv_bytes, rows_of
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.methods import METHODS
from tokcarve.passes.stage import Frozen, Method
from tokcarve.passes.text_taps import CALLER
from tokcarve.recipes.budgets import resolve_budget, stored_rows
from tokcarve.recipes.calibration.bench import Bench
from tokcarve.recipes.calibration.decide import decide
from tokcarve.recipes.calibration.freeze import counts_of
from tokcarve.recipes.calibration.work import Candidate
from tokcarve.recipes.carve import name_of, params_of, planned
from tokcarve.recipes.schema import Budget

__all__ = ["Choice", "Loss", "Serving", "best_method", "candidate_of", "losses", "serving", "smallest_count"]

STEPS = 2**0.5
"""From one count tried to the next larger one, at first."""

BETWEEN = 7  # counts tried between the smallest that passes and the largest that fails
SHORTLIST = 5  # methods that are compared on the samples held out
LEAST = TILE  # the smallest count tried


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Of a carved model on `samples` samples: kl in nats per token, changed: share with other first tokens."""

    kl: float
    changed: float
    samples: int

    @property
    def worst(self) -> float:
        """What a limit is compared with."""
        return max(self.kl, self.changed)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What was chosen, and the record of what it was chosen from."""

    method: Method
    tokens: int
    record: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Methods at the counts that a budget comes to for them, and why the others are none of them, by name."""

    able: list[tuple[Method, int]]
    passed_over: dict[str, str]


def losses(bench: Bench, candidates: Sequence[Candidate], samples: Iterable[int], what: str) -> list[Loss]:
    """The loss of every candidate on the samples of these numbers."""
    plain = [candidate.plain() for candidate in candidates]
    if not plain:
        return []
    tasks = [{"do": "likeness", "sample": sample, "candidates": plain} for sample in samples]
    kl, changed = [0.0] * len(plain), [0] * len(plain)
    for record in bench.runner.map(tasks, what):
        for place, one in enumerate(record["likeness"]):
            kl[place] += one["kl"]
            changed[place] += not one["same"]
    return [
        Loss(kl=total / len(tasks), changed=others / len(tasks), samples=len(tasks))
        for total, others in zip(kl, changed, strict=True)
    ]


def serving(geometry: Geometry, budget: Budget, positions: str) -> Serving:
    """The methods among which `--method auto` chooses; BudgetError where no method serves the budget."""
    if budget.tokens is not None or budget.keep is not None:
        resolve_budget(budget, METHODS["none"](), geometry)  # refuses what fits no method, in its own words
    able, passed_over = list[tuple[Method, int]](), dict[str, str]()
    for name, kind in METHODS.items():
        method = kind()
        try:
            tokens = resolve_budget(budget, method, geometry)
            reason = _unfit(method, geometry, tokens, positions)
        except (BudgetError, MethodError) as error:
            reason = str(error)
        if reason:
            passed_over[name] = reason
        else:
            able.append((method, tokens))
    if not able:
        why = "; ".join(f"{name}: {reason}" for name, reason in passed_over.items())
        raise BudgetError(f"no method serves this budget on this model ({why})")
    return Serving(able=able, passed_over=passed_over)


def _unfit(method: Method, geometry: Geometry, tokens: int, positions: str) -> str | None:
    """Why a method is not chosen for people, where it is not."""
    if "seed" in params_of(method):
        return "its choice is random"
    if method.learns(geometry, tokens):
        return "it learns from samples; name it to have it learn"
    stages = planned(method, geometry, tokens, None, positions)
    if not any(stage.how != "observe" for stage in stages):
        return "it drops nothing"
    if any(name in CALLER for stage in stages for name in stage.reads):
        return "it needs a state from whoever runs it"
    return None


def smallest_count(bench: Bench, method: Method, limit: float, positions: str) -> Choice:
    """The smallest count whose loss stays within `limit`, on the samples that calibrate and on those held out.

    Counts are gone through downwards until one fails, so no larger count that was tried fails. BudgetError, with the
    best that can be reached, where not even the largest count passes.
    """
    total, made = bench.geometry.total, dict[int, Candidate]()

    def measured(counts: Sequence[int], samples: range, what: str) -> dict[int, Loss]:
        fresh = [count for count in counts if count not in made]
        made.update({count: candidate_of(bench, method, count, positions) for count in fresh})
        return dict(zip(counts, losses(bench, [made[count] for count in counts], samples, what), strict=True))

    tried = measured(_able(bench, method, _steps(total), positions), bench.learning, "trying counts")
    passing = _down_to(tried, limit)
    if passing is not None:
        below = max((count for count in tried if count < passing), default=0)
        finer = _able(bench, method, _between(below, passing), positions)
        tried |= measured(finer, bench.learning, "trying counts between")
        passing = _down_to(tried, limit)
    held = dict[int, Loss]()
    for count in sorted(tried):
        if passing is not None and count >= passing:
            held |= measured([count], bench.held, "checking on held-out samples")
            if held[count].worst <= limit:
                return Choice(method=method, tokens=count, record=_curve(limit, tried, held))
    raise BudgetError(_unreached(method, limit, held if held else tried, total, bench))


def best_method(bench: Bench, serving: Serving, positions: str) -> Choice:
    """The method with the least divergence on all samples, among those with the least on the samples that calibrate.

    Those held out alone would be few, and little is fitted to the others: counts of methods that leave them open.
    """
    able = serving.able
    candidates = [candidate_of(bench, method, tokens, positions) for method, tokens in able]
    found = losses(bench, candidates, bench.learning, "comparing methods")
    order = sorted(range(len(able)), key=lambda place: (found[place].kl, place))
    short = order[:SHORTLIST]
    held = losses(bench, [candidates[place] for place in short], bench.held, "comparing the best on held-out samples")
    overall = [_both(found[place], loss) for place, loss in zip(short, held, strict=True)]
    best = min(range(len(short)), key=lambda place: (overall[place], place))
    method, tokens = able[short[best]]
    record = {
        "methods": [_line(bench, candidates[place], found[place]) for place in order],
        "held_out": [{"method": name_of(able[p][0]), **asdict(loss)} for p, loss in zip(short, held, strict=True)],
        "passed_over": serving.passed_over,
    }
    return Choice(method=method, tokens=tokens, record={"auto": record})


def _both(one: Loss, other: Loss) -> float:
    """The mean divergence on the samples of both."""
    return (one.kl * one.samples + other.kl * other.samples) / (one.samples + other.samples)


def candidate_of(bench: Bench, method: Method, tokens: int, positions: str) -> Candidate:
    """A method at a count, what it leaves open decided and frozen on the samples that calibrate."""
    method, _ = decide(bench, method, tokens, positions)
    dynamic, counts = method.dynamic(), None
    if dynamic is not None:
        counts = frozen_counts(counts_of(bench, dynamic, tokens), tokens, bench.quantile)
    return Candidate(
        method=name_of(method), params=params_of(method), tokens=tokens, positions=positions, counts=counts
    )


def _able(bench: Bench, method: Method, counts: Iterable[int], positions: str) -> list[int]:
    """Those of `counts` that the method can plan; its own error where there is none."""
    able, refused = list[int](), None
    for count in counts:
        try:
            if method.learns(bench.geometry, count):
                raise MethodError(
                    f"{method.facts.title} learns from samples at one count, so it cannot be tried at many; give a "
                    "count with --tokens"
                )
            planned(method, bench.geometry, count, None, positions)
            able.append(count)
        except MethodError as error:
            refused = error
    if not able and refused is not None:
        raise refused
    return able


def _steps(total: int) -> list[int]:
    """Multiples of 8 below `total`, each about half as large again as the one before."""
    counts, reached = {(total - 1) // TILE * TILE}, float(LEAST)
    while reached < total:
        counts.add(TILE * math.ceil(round(reached) / TILE))
        reached *= STEPS
    return sorted(count for count in counts if 0 < count < total)


def _between(below: int, passing: int) -> list[int]:
    """Up to seven multiples of 8 between two counts, evenly."""
    room = range(below // TILE * TILE + TILE, passing, TILE)
    step = -(-len(room) // BETWEEN) or 1
    return list(room[step - 1 :: step])


def _down_to(tried: dict[int, Loss], limit: float) -> int | None:
    """The smallest count above every one that fails; None where the largest fails."""
    passing = None
    for count in sorted(tried, reverse=True):
        if not tried[count].worst <= limit:
            break
        passing = count
    return passing


def _curve(limit: float, tried: dict[int, Loss], held: dict[int, Loss]) -> dict[str, Any]:
    sides = ([{"tokens": n, **asdict(found[n])} for n in sorted(found)] for found in (tried, held))
    return {"auto": {"max_loss": limit, **dict(zip(("curve", "held_out"), sides, strict=True))}}


def _unreached(method: Method, limit: float, tried: dict[int, Loss], total: int, bench: Bench) -> str:
    best = min(tried, key=lambda count: (tried[count].worst, count))
    loss = tried[best]
    return (
        f"max_loss={limit} cannot be met by {method.facts.title} below {total} tokens on {bench.set.source}: the best "
        f"is {best} tokens with a KL of {loss.kl:.3g} nats and other answers on {loss.changed:.1%} of {loss.samples} "
        "samples; allow more, take more samples, or choose another method"
    )


def _line(bench: Bench, candidate: Candidate, loss: Loss) -> dict[str, Any]:
    """A method in the record, with the three token numbers."""
    method, tokens = candidate.made, candidate.tokens
    frozen = None if candidate.counts is None else Frozen(counts=candidate.counts)
    stages = [s for s in planned(method, bench.geometry, tokens, frozen, candidate.positions) if s.how != "observe"]
    rows = rows_of(bench.geometry, stages, 0).text
    numbers = {
        "tokens": tokens,
        "tokens_entering": rows[0],
        "tokens_mean": sum(rows) / len(rows),
        "kv_mib": kv_bytes(bench.geometry.text, stored_rows(bench.geometry, stages)) / 2**20,
    }
    return {"method": candidate.method, **numbers, **asdict(loss)}
