"""From measured stages to one sentence, and to warnings about whatever got slower."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokcarve.exporters.device.machine import Machine
from tokcarve.exporters.device.timing import Distribution

__all__ = ["Stage", "decode_share", "verdict", "warnings"]

_NOISE = 0.03
_NAMES = {
    "encoder": "encoder",
    "prefill": "prefill",
    "decode": "decode",
    "first_token": "time to first token",
    "end_to_end": "end to end",
}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage on both sides; `predicted` is how much less the pruned side computes, in FLOPs, or None."""

    pruned: Distribution
    unpruned: Distribution
    predicted: float | None

    @property
    def speedup(self) -> float:
        """Unpruned over pruned median: above 1 is a gain."""
        return self.unpruned.p50 / self.pruned.p50

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

    def record(self) -> dict[str, Any]:
        """This stage as JSON."""
        return {
            "pruned": _distribution(self.pruned),
            "unpruned": _distribution(self.unpruned),
            "speedup": self.speedup,
            "predicted": self.predicted,
            "realised": self.realised,
        }


def _distribution(one: Distribution) -> dict[str, float]:
    return {"p50_ms": one.p50, "p95_ms": one.p95, "mean_ms": one.mean, "min_ms": one.least}


def decode_share(stages: Mapping[str, Stage], max_new: int) -> float:
    """The share, in 0..1, of a pruned answer of `max_new` tokens that is spent decoding after the first one."""
    return (max_new - 1) * stages["decode"].pruned.p50 / stages["end_to_end"].pruned.p50


def verdict(stages: Mapping[str, Stage], max_new: int) -> str:
    """One sentence: prefill, first token and whole answer, and how much of the answer pruning cannot reach."""
    prefill, first, whole = stages["prefill"], stages["first_token"], stages["end_to_end"]
    share = decode_share(stages, max_new)
    because = share >= 0.5 and whole.speedup < 0.9 * first.speedup
    link = f", because {share:.0%} of that is decode" if because else f", {share:.0%} of it decode"
    possible = f" of a possible {prefill.predicted:.1f}x" if prefill.predicted is not None else ""
    tokens = f"{max_new} new token{'s' if max_new > 1 else ''}"
    return (
        f"prefill {prefill.speedup:.1f}x{possible}; time to first token {first.speedup:.1f}x; "
        f"end to end {whole.speedup:.1f}x for {tokens}{link if max_new > 1 else ''}"
    )


def warnings(stages: Mapping[str, Stage], machine: Machine) -> tuple[str, ...]:
    """A sentence for every stage that is slower than unpruned, and what makes the figures doubtful."""
    slower = [
        f"{words} is slower than unpruned: {stage.pruned.p50:.2f} against {stage.unpruned.p50:.2f} ms "
        f"({stage.speedup:.2f}x)"
        for name, words in _NAMES.items()
        if (stage := stages[name]).slower
    ]
    if machine.fell_back:
        slower.append(
            f"a GPU driver is here, but ONNX Runtime could not start CUDA, so this ran on the {machine.provider}; "
            f"install the CUDA and cuDNN libraries that onnxruntime-gpu {machine.onnxruntime} names"
        )
    if machine.busy:
        slower.append(
            f"the machine was busy before measuring (load {machine.load:.1f} on {machine.cores} cores): "
            f"trust ratios more than milliseconds"
        )
    return tuple(slower)
