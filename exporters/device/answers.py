"""Whole answers: measured, predicted from the stages, and up to which length pruning pays.

An answer of n tokens is encoder, embedding, prefill and, for n above 1, the filling of the cache and n - 1 decode
steps. Measured are answers that run through all of it; predicted is what the stages, each measured alone, sum up to.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import floor
from typing import Any

from tokcarve.exporters.device.rounds import Samples, ratios
from tokcarve.exporters.device.stages import answer_name
from tokcarve.exporters.device.timing import Distribution, distribution
from tokcarve.passes.errors import ExportError

__all__ = ["PAYS", "SUMS_WITHIN", "Answer", "BreakEven", "answers_of", "break_even", "check_answers", "decode_share"]

SUMS_WITHIN = 0.05
"""How far an answer may be from the sum of its stages before the profile says so."""
PAYS = 1.1
"""The end-to-end speed-up from which on pruning is said to pay."""
_USUAL = (1, 16, 64)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Answers of `new` tokens: milliseconds of both sides and the ratio of each round; `predicted` is the speed-up that
    the medians of the stages give; `sums` is what an answer takes over what its stages take, per round, (pruned,
    unpruned)."""

    new: int
    pruned: Distribution
    unpruned: Distribution
    ratio: Distribution
    predicted: float
    sums: tuple[Distribution, Distribution]

    @property
    def adds_up(self) -> bool:
        """Whether the stages sum up to the whole, on both sides."""
        return all(abs(one.p50 - 1) <= SUMS_WITHIN for one in self.sums)

    def record(self) -> dict[str, Any]:
        """This length as JSON."""
        interval = self.ratio.interval
        return {
            "new_tokens": self.new,
            "pruned": self.pruned.record(),
            "unpruned": self.unpruned.record(),
            "speedup": self.ratio.p50,
            "speedup_interval": None if interval is None else [interval.low, interval.high],
            "predicted": self.predicted,
            "whole_over_parts": {"pruned": self.sums[0].p50, "unpruned": self.sums[1].p50},
            "adds_up": self.adds_up,
        }


@dataclass(frozen=True, kw_only=True)
class BreakEven:
    """Answers of `shortest` to `longest` new tokens gain `PAYS` or more; None for `shortest` where none does, and for
    `longest` where there is no end."""

    shortest: int | None
    longest: int | None

    def record(self) -> dict[str, Any]:
        """This as JSON."""
        return {"speedup": PAYS, "shortest": self.shortest, "longest": self.longest}

    def __str__(self) -> str:
        if self.shortest is None:
            return f"no answer is {PAYS:g}x faster, however short or long"
        if self.longest is None:
            begin = "answers of any length" if self.shortest == 1 else f"answers from {self.shortest} new tokens on"
            return f"{begin} are {PAYS:g}x faster or more"
        if self.shortest > 1:
            return f"answers of {self.shortest} to {self.longest} new tokens are {PAYS:g}x faster or more, no others"
        return f"break-even ({PAYS:g}x) below {self.longest + 1} new tokens"


def check_answers(answers: Sequence[int] | None, most: int) -> tuple[int, ...]:
    """Answer lengths, rising: those asked for, else 1, 16, 64 as far as the export holds them, and its longest.

    ExportError for a length outside 1..most.
    """
    if answers is None:
        return tuple(sorted({min(one, most) for one in _USUAL}))
    wrong = [one for one in answers if not 1 <= one <= most]
    if wrong or not answers:
        asked = f"{wrong[0]} new tokens do" if wrong else "no answer length does"
        raise ExportError(
            f"answers: {asked} not fit this export; choose 1..{most}, or export again with `tokcarve export --max-new`"
        )
    return tuple(sorted(set(answers)))


def answers_of(samples: Mapping[str, Samples], answers: Sequence[int]) -> tuple[Answer, ...]:
    """Every length of `answers` from the samples of the stages and of `answer_name`."""
    made = []
    for new in answers:
        whole = samples[answer_name(new)]
        parts = tuple(_parts(samples, side, new) for side in (0, 1))
        medians = [sum(times * distribution(samples[name][side]).p50 for name, times in _terms(new)) for side in (0, 1)]
        sums = [[one / other for one, other in zip(whole[side], parts[side], strict=False)] for side in (0, 1)]
        made.append(
            Answer(
                new=new,
                pruned=distribution(whole[0]),
                unpruned=distribution(whole[1]),
                ratio=distribution(ratios(whole)),
                predicted=medians[1] / medians[0],
                sums=(distribution(sums[0]), distribution(sums[1])),
            )
        )
    return tuple(made)


def _terms(new: int) -> tuple[tuple[str, int], ...]:
    """Which stages an answer of `new` tokens runs how often."""
    first = (("encoder", 1), ("embedding", 1), ("prefill", 1))
    return first if new == 1 else (*first, ("cache", 1), ("decode", new - 1))


def _parts(samples: Mapping[str, Samples], side: int, new: int) -> list[float]:
    stages = [[times * spent for spent in samples[name][side]] for name, times in _terms(new)]
    return [sum(parts) for parts in zip(*stages, strict=False)]


def break_even(samples: Mapping[str, Samples]) -> BreakEven:
    """Where the sums of the stages' medians stay `PAYS` times apart; lengths beyond the exported one cost as before."""

    def lead(terms: Sequence[tuple[str, int]]) -> float:
        """Milliseconds by which unpruned is slower than `PAYS` times pruned."""
        sums = [sum(times * distribution(samples[name][side]).p50 for name, times in terms) for side in (0, 1)]
        return sums[1] - PAYS * sums[0]

    first, second, step = lead(_terms(1)), lead(_terms(2)), lead((("decode", 1),))
    if first >= 0 and (second >= 0 or step <= 0):
        if second < 0:
            return BreakEven(shortest=1, longest=1)
        return BreakEven(shortest=1, longest=None if step >= 0 else 2 + floor(second / -step))
    if second >= 0:
        return BreakEven(shortest=2, longest=None if step >= 0 else 2 + floor(second / -step))
    if step <= 0:
        return BreakEven(shortest=None, longest=None)
    return BreakEven(shortest=2 + -floor(second / step), longest=None)


def decode_share(samples: Mapping[str, Samples], new: int) -> float:
    """The share, in 0..1, of a pruned answer of `new` tokens that is spent decoding after the first one."""
    spent = {name: times * distribution(samples[name][0]).p50 for name, times in _terms(new)}
    return spent.get("decode", 0.0) / sum(spent.values())
