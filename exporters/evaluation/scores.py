"""Scores of answers: per question, then of a side as a whole, each a value of sums, so that one bootstrap serves all.

Gives       shares from 0 to 1, and nats per token for divergences; None for a measure that no question is about.
Differs     soft match averages over leaving one annotator out where there are exactly ten answers, as VQA has them;
            else an answer is right where it equals any of those given.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tokcarve.exporters.evaluation.normalise import normalised, polarity
from tokcarve.exporters.evaluation.questions import Question
from tokcarve.recipes.calibration.intervals import redrawn

__all__ = ["Answer", "Floats", "Measures", "constant", "exact", "measures", "soft"]

Floats = NDArray[np.float64]

_ANNOTATORS, _AGREEING = 10, 3


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What was said to one question: token ids (a stop token, if one came, is the last) and text; same: whether the
    unpruned model said the same; kl: the divergence from it at every token that it said, in nats."""

    tokens: tuple[int, ...]
    text: str
    same: bool
    kl: tuple[float, ...]


def exact(said: str, answers: Sequence[str]) -> float:
    """1 where the answer, normalised, is one of `answers`, else 0."""
    return float(normalised(said) in {normalised(one) for one in answers})


def soft(said: str, answers: Sequence[str]) -> float:
    """VQA's soft match, 0 to 1: three of ten annotators suffice, each left out in turn; `exact` for other numbers."""
    if len(answers) != _ANNOTATORS:
        return exact(said, answers)
    hits = [normalised(said) == normalised(one) for one in answers]
    return float(np.mean([min((sum(hits) - hit) / _AGREEING, 1.0) for hit in hits]))


def constant(questions: Sequence[Question]) -> Floats:
    """The soft match [questions] of always giving, within each family, the answer that does best there."""
    gains: dict[str, Counter[str]] = {}
    for one in questions:
        tally = gains.setdefault(one.family, Counter())
        for said in {normalised(answer) for answer in one.answers}:
            tally[said] += soft(said, one.answers)  # type: ignore[assignment]
    best = {family: max(sorted(tally), key=lambda said: tally[said]) for family, tally in gains.items()}
    return np.array([soft(best[one.family], one.answers) for one in questions])


@dataclass(frozen=True)
class _Measure:
    """A value of the sums over questions of `columns` [questions, n]."""

    columns: Floats
    value: Callable[[Floats], Floats]


class Measures:
    """All measures of one side by name, over questions whose pictures are numbered by `groups`."""

    def __init__(self, found: Mapping[str, _Measure], groups: Sequence[int]) -> None:
        self._found, self._groups = found, groups

    def values(self) -> dict[str, float | None]:
        """Every measure; None where no question is about it."""
        with np.errstate(divide="ignore", invalid="ignore"):
            made = {
                name: float(one.value(one.columns.sum(axis=0, keepdims=True))[0]) for name, one in self._found.items()
            }
        return {name: value if np.isfinite(value) else None for name, value in made.items()}

    def less(self, other: "Measures", seed: int) -> dict[str, list[float | None] | None]:
        """Every measure less that of `other` over the same questions: [difference, low, high] of a 95 % bootstrap
        interval over pictures, both sides drawn together; no interval for a single picture."""
        here, there = self.values(), other.values()
        drawn = zip(self._drawn(seed), other._drawn(seed), strict=True)
        single = max(self._groups) == 0
        made: dict[str, list[float | None] | None] = {}
        for name, (first, second) in zip(self._found, drawn, strict=True):
            one, two = here[name], there[name]
            gaps = (first - second)[np.isfinite(first - second)]
            if one is None or two is None:
                made[name] = None
            elif single or not len(gaps):
                made[name] = [one - two, None, None]
            else:
                made[name] = [one - two, *map(float, np.quantile(gaps, [0.025, 0.975]))]
        return made

    def _drawn(self, seed: int) -> list[Floats]:
        """Every measure in every draw."""
        sums = redrawn(np.concatenate([one.columns for one in self._found.values()], axis=1), self._groups, seed)
        ends = np.cumsum([one.columns.shape[1] for one in self._found.values()])[:-1]
        with np.errstate(divide="ignore", invalid="ignore"):
            parts = zip(self._found.values(), np.split(sums, ends, axis=1), strict=True)
            return [one.value(part) for one, part in parts]


def measures(questions: Sequence[Question], groups: Sequence[int], runs: Sequence[Sequence[Answer]]) -> Measures:
    """The measures of a side that answered `questions` once, or several times (the mean counts)."""
    made = [_tables(questions, run) for run in runs]
    table = {name: np.mean([one[name] for one in made], axis=0) for name in made[0]}
    count = np.ones(len(questions))
    families = list(dict.fromkeys(one.family for one in questions))
    members = np.array([[one.family == family for family in families] for one in questions], dtype=np.float64)
    truth = {word: np.array([float(one.truth == word) for one in questions]) for word in ("yes", "no")}
    binary = truth["yes"] + truth["no"]
    absent = np.array([float(one.existence) for one in questions]) * truth["no"]
    place = np.array([float(one.localisation) for one in questions])
    hits = table["soft"]
    found = {
        "score": _ratio(hits, count),
        "macro": _Measure(np.concatenate([hits[:, None] * members, members], axis=1), _mean_of_ratios),
        "exact": _ratio(table["exact"], count),
        "loyalty": _ratio(table["same"], count),
        "kl": _ratio(table["kl"], table["tokens"]),
        "kl_first": _ratio(table["kl_first"], count),
        **_pope(table, truth, binary),
        "hallucination": _ratio(table["yes"] * absent, absent),
        "localisation": _ratio(hits * place, place),
    }
    for column, family in enumerate(families):
        found[f"family {family}"] = _ratio(hits * members[:, column], members[:, column])
    return Measures(found, groups)


def _tables(questions: Sequence[Question], run: Sequence[Answer]) -> dict[str, Floats]:
    pairs = list(zip(questions, run, strict=True))
    said = [polarity(answer.text) for answer in run]
    return {
        "soft": np.array([soft(answer.text, question.answers) for question, answer in pairs]),
        "exact": np.array([exact(answer.text, question.answers) for question, answer in pairs]),
        "same": np.array([float(answer.same) for answer in run]),
        "kl": np.array([sum(answer.kl) for answer in run]),
        "kl_first": np.array([answer.kl[0] for answer in run]),
        "tokens": np.array([float(len(answer.kl)) for answer in run]),
        "yes": np.array([float(word == "yes") for word in said]),
        "no": np.array([float(word == "no") for word in said]),
    }


def _pope(table: Mapping[str, Floats], truth: Mapping[str, Floats], binary: Floats) -> dict[str, _Measure]:
    """POPE's measures (arXiv:2305.10355) over all questions to be answered yes or no; "yes" is positive, and an answer
    that begins with neither is wrong."""
    found, claimed = table["yes"] * truth["yes"], table["yes"] * binary
    right = found + table["no"] * truth["no"]
    return {
        "pope accuracy": _ratio(right, binary),
        "pope precision": _ratio(found, claimed),
        "pope recall": _ratio(found, truth["yes"]),
        "pope f1": _ratio(2 * found, claimed + truth["yes"]),
        "pope yes_ratio": _ratio(claimed, binary),
        "pope unclear": _ratio(binary - (table["yes"] + table["no"]) * binary, binary),
    }


def _ratio(hits: Floats, count: Floats) -> _Measure:
    return _Measure(np.stack([hits, count], axis=1), lambda sums: sums[..., 0] / sums[..., 1])


def _mean_of_ratios(sums: Floats) -> Floats:
    """The mean over the families that were drawn at all."""
    hits, counts = np.split(sums, 2, axis=-1)
    drawn = counts > 0
    ratios = np.where(drawn, hits / np.where(drawn, counts, 1), 0)
    mean: Floats = np.asarray(ratios.sum(axis=-1) / drawn.sum(axis=-1))
    return mean
