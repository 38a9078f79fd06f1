"""The points of a sweep as rows: scores with paired intervals, costs, and which of them no other beats in both."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokcarve.exporters.evaluation.questions import QuestionSet
from tokcarve.exporters.evaluation.scores import Answer, Measures, measures

__all__ = ["Point", "Row", "front", "rows_of_points"]

Interval = list[float | None] | None
PLAIN = "none"


@dataclass(frozen=True, kw_only=True)
class Point:
    """What a worker made of a point, and of its export where that was timed."""

    record: Mapping[str, Any]
    measured: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class Row:
    """One point. Shares are from 0 to 1.

    entering, mean: visual tokens at the first layer of the language model, and their mean over its layers; kv_mib: of
    their keys and values in fp16; encoder, prefill: FLOPs as a share of the unpruned model's, cost: of both together;
    score, macro: right answers, mean over questions and over families; loyalty: answers equal to the unpruned model's;
    kl: nats per token; against_unpruned, against_control: difference of scores with a 95 % interval, [difference, low,
    high]; control: the best one at this count; front: no other point costs less and scores no worse; measured: median
    milliseconds.
    """

    method: str
    tokens: int
    is_control: bool
    entering: int
    mean: float
    kv_mib: float
    encoder: float
    prefill: float
    cost: float
    score: float
    macro: float | None
    loyalty: float
    kl: float | None
    families: Mapping[str, float | None]
    against_unpruned: Interval
    control: str | None
    against_control: Interval
    front: bool
    measured: Mapping[str, Any] | None

    @property
    def name(self) -> str:
        """What it is called in tables."""
        return "unpruned" if self.method == PLAIN else self.method

    @property
    def verdict(self) -> str:
        """Of a method beside the best control of its count: better or worse where the whole interval says so."""
        if self.is_control or self.method == PLAIN or self.against_control is None:
            return ""
        _, low, high = self.against_control
        if low is None or high is None:
            return "unclear"
        return "better" if low > 0 else "worse" if high < 0 else "unclear"

    @property
    def speedup(self) -> float | None:
        """Of the first token, measured: the median ratio."""
        return None if self.measured is None else float(self.measured["first_token"]["speedup"])

    def record(self) -> dict[str, Any]:
        """This row as JSON."""
        return {**vars(self), "families": dict(self.families), "verdict": self.verdict}


def rows_of_points(
    points: Sequence[Point], asked: QuestionSet, controls: Sequence[str], seed: int = 0
) -> tuple[Row, ...]:
    """The rows, of which the first point is the unpruned model."""
    found = [_measures(point, asked) for point in points]
    values = [one.values() for one in found]
    costs = [_share(point, points[0]) for point in points]
    best = _best_controls(points, values, controls)
    fronts = front([cost for _, _, cost in costs], [float(one["score"] or 0) for one in values])
    rows = []
    for place, (point, mine) in enumerate(zip(points, values, strict=True)):
        record, rival = point.record, best.get(point.record["tokens"])
        against = None if rival in (None, place) or not place else found[place].less(found[rival], seed)["score"]
        rows.append(
            Row(
                method=record["method"],
                tokens=record["tokens"],
                is_control=record["method"] in controls,
                entering=record["numbers"]["tokens_entering"],
                mean=float(record["numbers"]["tokens_mean"]),
                kv_mib=record["numbers"]["kv_mib"],
                encoder=costs[place][0],
                prefill=costs[place][1],
                cost=costs[place][2],
                score=float(mine["score"] or 0),
                macro=mine["macro"],
                loyalty=float(mine["loyalty"] or 0),
                kl=None if mine["kl"] is None else float(mine["kl"]),
                families={
                    name.removeprefix("family "): one for name, one in mine.items() if name.startswith("family ")
                },
                against_unpruned=found[place].less(found[0], seed)["score"] if place else None,
                control=None if rival is None or not place else points[rival].record["method"],
                against_control=against,
                front=fronts[place],
                measured=point.measured,
            )
        )
    return tuple(rows)


def front(costs: Sequence[float | int], scores: Sequence[float | int]) -> list[bool]:
    """Whether no other point is as cheap and as good, and better in one of both."""

    def beaten(i: int) -> bool:
        return any(
            costs[j] <= costs[i] and scores[j] >= scores[i] and (costs[j] < costs[i] or scores[j] > scores[i])
            for j in range(len(costs))
        )

    return [not beaten(i) for i in range(len(costs))]


def _measures(point: Point, asked: QuestionSet) -> Measures:
    runs = [
        [Answer(tokens=tuple(a["tokens"]), text=a["text"], same=a["same"], kl=tuple(a["kl"])) for a in run]
        for run in point.record["runs"]
    ]
    return measures(asked.questions, asked.groups, runs)


def _share(point: Point, plain: Point) -> tuple[float, float, float]:
    """FLOPs of encoder, prefill and both, each as a share of the unpruned model's."""
    mine, whole = point.record["flops"], plain.record["flops"]
    both = (mine["encoder"] + mine["prefill"]) / (whole["encoder"] + whole["prefill"])
    return mine["encoder"] / whole["encoder"], mine["prefill"] / whole["prefill"], both


def _best_controls(
    points: Sequence[Point], values: Sequence[Mapping[str, float | None]], controls: Sequence[str]
) -> dict[int, int]:
    """By count, the place of the control with the best score."""
    found: dict[int, int] = {}
    for place, point in enumerate(points):
        if point.record["method"] in controls:
            count = point.record["tokens"]
            if count not in found or (values[place]["score"] or 0) > (values[found[count]]["score"] or 0):
                found[count] = place
    return found
