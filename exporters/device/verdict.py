"""From measured stages to one sentence, and to warnings about whatever got slower or does not fit together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokcarve.exporters.device.answers import SUMS_WITHIN, Answer, BreakEven
from tokcarve.exporters.device.machine import Machine
from tokcarve.exporters.device.rounds import settled
from tokcarve.exporters.device.timing import Distribution

__all__ = ["Stage", "verdict", "warnings"]

_NOISE, _SIDES = 0.03, ("pruned", "unpruned")
_NAMES = {
    "encoder": "encoder",
    "prefill": "prefill",
    "decode": "decode",
    "first_token": "time to first token",
    "end_to_end": "end to end",
}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage on both sides; `ratio` is unpruned over pruned, round by round; `predicted` is how much less the pruned
    side computes, in FLOPs, or None; `rounds` is how often it was measured."""

    pruned: Distribution
    unpruned: Distribution
    ratio: Distribution
    predicted: float | None
    rounds: int = 1

    @property
    def speedup(self) -> float:
        """The median ratio: above 1 is a gain."""
        return self.ratio.p50

    @property
    def realised(self) -> float | None:
        """The share of the predicted speed-up that was measured."""
        return None if self.predicted is None else self.speedup / self.predicted

    @property
    def slower(self) -> bool:
        """Whether the pruned side loses by more than noise, in its median and in its best run."""
        return all(
            mine > (1 + _NOISE) * other
            for mine, other in ((self.pruned.p50, self.unpruned.p50), (self.pruned.least, self.unpruned.least))
        )

    def tight(self, tolerance: float) -> bool:
        """Whether both medians and the speed-up are known to within `tolerance` of themselves."""
        return all(settled(one, tolerance) for one in (self.pruned, self.unpruned, self.ratio))

    def record(self, tolerance: float) -> dict[str, Any]:
        """This stage as JSON."""
        interval = self.ratio.interval
        return {
            "pruned": self.pruned.record(),
            "unpruned": self.unpruned.record(),
            "speedup": self.speedup,
            "speedup_interval": None if interval is None else [interval.low, interval.high],
            "predicted": self.predicted,
            "realised": self.realised,
            "rounds": self.rounds,
            "tight": self.tight(tolerance),
        }


def verdict(stages: Mapping[str, Stage], max_new: int, decode_share: float, pays: BreakEven) -> str:
    """One sentence: prefill, first token and whole answer, how much of the answer pruning cannot reach, and the answer
    length up to which it pays."""
    prefill, first, whole = stages["prefill"], stages["first_token"], stages["end_to_end"]
    because = decode_share >= 0.5 and whole.speedup < 0.9 * first.speedup
    link = f" because {decode_share:.0%} of that is decode" if because else f", {decode_share:.0%} of it decode"
    possible = f" of a possible {prefill.predicted:.1f}x" if prefill.predicted is not None else ""
    tokens = f"{max_new} new token{'s' if max_new > 1 else ''}"
    return (
        f"prefill {prefill.speedup:.1f}x{possible}; time to first token {first.speedup:.1f}x; "
        f"end to end {whole.speedup:.2f}x for {tokens}{link if max_new > 1 else ''}; {pays}"
    )


def warnings(
    stages: Mapping[str, Stage], answers: Sequence[Answer], machine: Machine, loose: Sequence[str], *, together: bool
) -> tuple[str, ...]:
    """A sentence for every stage that is slower than unpruned, for answers that are not the sum of their stages, and
    for what makes the figures doubtful; `loose` names the stages whose intervals stayed too wide."""
    said = [
        f"{words} is slower than unpruned: {stage.pruned.p50:.2f} against {stage.unpruned.p50:.2f} ms "
        f"({stage.speedup:.2f}x)"
        for name, words in _NAMES.items()
        if (stage := stages[name]).slower
    ]
    sums = [(name, side.p50, one.new) for one in answers for name, side in zip(_SIDES, one.sums, strict=True)]
    side, times, new = max(sums, key=lambda one: abs(one[1] - 1))
    if not all(one.adds_up for one in answers):
        said.append(
            f"{side} answers of {new} new tokens take {times:.2f} times what their stages take alone (more than "
            f"{SUMS_WITHIN:.0%} apart): trust the measured answers more than the stages"
        )
    if loose:
        names = ", ".join(_NAMES[name] for name in loose)
        said.append(
            f"the intervals of {names} are still wider than asked: the machine was not quiet, or the time was up; "
            "measure longer (--seconds), or take their ends for what is known"
        )
    if not together:
        said.append(
            "both sides do not fit into memory together, so whole answers were measured a few times alone, with graphs "
            "loaded in between, and have no interval"
        )
    if machine.fell_back:
        said.append(
            f"a GPU driver is here, but ONNX Runtime could not start CUDA, so this ran on the {machine.provider}; "
            f"install the CUDA and cuDNN libraries that onnxruntime-gpu {machine.onnxruntime} names"
        )
    if machine.busy:
        said.append(
            f"the machine was busy before measuring (load {machine.load:.1f} on {machine.cores} cores): "
            f"trust ratios more than milliseconds"
        )
    return tuple(said)
