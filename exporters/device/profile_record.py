"""All that a profile measured and computed, and its form as JSON.

`Profile.record()` is the JSON of `tokcarve profile --json`; pairs are {pruned, unpruned}:

    format 1, artifact, made_of (digests of artifact and export), batch, max_text, max_new (the longest answer
        measured), warm_up, repeats (null: until tight),
        tolerance, together (whether stages and answers were measured in the same rounds), tokens that enter the
        language model, tokens_mean over its layers,
    machine {cpu, cores, load, threads, provider, fell_back, onnxruntime, dtype},
    balance {gflops_per_second, gib_per_second, flops_per_byte} that this machine reaches at best, or null
    clocks {source, unread, and for each name of clocks.py that was read {min, median, max}}
    stages {encoder, embedding, prefill, cache, decode, first_token, end_to_end}:
        pruned, unpruned {p50_ms, p95_ms, mean_ms, min_ms, interval_ms}, speedup (median of the rounds' ratios),
        speedup_interval, predicted (by FLOPs, or null), realised (speedup / predicted, or null), rounds, tight;
        encoder holds connector and selector, decode is one token of each row, first_token and end_to_end are measured
        answers of one and of max_new tokens; intervals are [low, high] of the median at 95 %, or null
    answers: per length {new_tokens, pruned, unpruned, speedup, speedup_interval, predicted (by the stages'
        milliseconds), whole_over_parts of each side, adds_up (both within 5 %)}
    break_even {speedup, shortest, longest}: answers of that many new tokens gain that speedup, by the stages
    selector {ms, share_of_encoder, share_of_prefill}
    memory {peak_mib, start_mib, device_mib, kv_mib}: resident MiB of the process at its peak and before any
        graph was loaded, MiB of a GPU's own memory or null, and the KV buffers as exported
    flops {encoder, connector, prefill, decode} and conventions {all, macs, fastv} of the prefill:
        per image, as passes/flops.py counts them
    verdict, reasons, warnings: sentences
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokcarve.exporters.device.answers import Answer, BreakEven
from tokcarve.exporters.device.balance import Balance
from tokcarve.exporters.device.face import ExportRecord, Side
from tokcarve.exporters.device.machine import Machine
from tokcarve.exporters.device.memory import Memory
from tokcarve.exporters.device.reasons import reasons
from tokcarve.exporters.device.rounds import Effort
from tokcarve.exporters.device.verdict import Stage, verdict, warnings
from tokcarve.exporters.device.work import works
from tokcarve.passes.flops import Flops

__all__ = ["Profile"]

_SIDES = ("pruned", "unpruned")
_PARTS = ("encoder", "connector", "prefill", "decode")
_MEMORY = ("peak_mib", "start_mib", "device_mib")
_ANSWERS = ("first_token", "end_to_end")
_WAITED = ("encoder", "prefill", "decode", "first_token", "end_to_end")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Pairs are (pruned, unpruned), `side` is the pruned one; `decode_share` is that of the longest pruned answer."""

    artifact: Path
    face: ExportRecord
    side: Side
    machine: Machine
    balance: Balance | None
    clocks: Mapping[str, Any]
    effort: Effort
    together: bool
    stages: Mapping[str, Stage]
    answers: tuple[Answer, ...]
    pays: BreakEven
    decode_share: float
    selector_shares: Mapping[str, float]
    memory: tuple[Memory, Memory]
    kv_mib: tuple[float, float]
    tokens_mean: tuple[float, float]
    flops: tuple[Flops, Flops]
    prefill_conventions: tuple[Mapping[str, int], Mapping[str, int]]

    @property
    def max_new(self) -> int:
        """New tokens of the longest answer that was measured."""
        return self.answers[-1].new

    @property
    def selector_ms(self) -> float:
        """Milliseconds of the pruned encoder and prefill that selection takes."""
        encoder, prefill = (self.stages[name].pruned.p50 for name in ("encoder", "prefill"))
        return self.selector_shares["vision"] * encoder + self.selector_shares["prefill"] * prefill

    @property
    def loose(self) -> tuple[str, ...]:
        """Stages whose intervals stayed wider than asked for; of a given number of rounds nothing was asked."""
        if self.effort.repeats is not None:
            return ()
        waited = _WAITED if self.together else tuple(name for name in _WAITED if name not in _ANSWERS)
        return tuple(name for name in waited if not self.stages[name].tight(self.effort.tolerance))

    @property
    def verdict(self) -> str:
        """One sentence: what was gained, of what was possible, for which answers."""
        return verdict(self.stages, self.max_new, self.decode_share, self.pays)

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why no more was gained."""
        shares = {"encoder": self.selector_shares["vision"], "prefill": self.selector_shares["prefill"]}
        pruned, unpruned = (
            works(self.face, side, flops)
            for side, flops in zip((self.side, self.face.baseline), self.flops, strict=True)
        )
        return reasons(self.stages, (pruned, unpruned), shares, self.balance, self.decode_share)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Whatever is slower than unpruned, and what makes these figures doubtful."""
        return warnings(self.stages, self.answers, self.machine, self.loose, together=self.together)

    def record(self) -> dict[str, Any]:
        """These figures as JSON; the head of this file says what is where."""
        flops = {name: [getattr(one, name) for one in self.flops] for name in _PARTS}
        memory = {name: [getattr(one, name) for one in self.memory] for name in _MEMORY}
        named = {name: [counts[name] for counts in self.prefill_conventions] for name in self.prefill_conventions[0]}
        return {
            "format": 1,
            "artifact": str(self.artifact),
            "made_of": {"artifact": self.face.artifact, "export": self.face.digest},
            "batch": self.face.batch,
            "max_text": self.face.max_text,
            "max_new": self.max_new,
            "warm_up": self.effort.warm_up,
            "repeats": self.effort.repeats,
            "tolerance": self.effort.tolerance,
            "together": self.together,
            "tokens": _sided([self.side.tokens, self.face.baseline.tokens]),
            "tokens_mean": _sided(self.tokens_mean),
            "machine": self.machine.record(),
            "balance": None if self.balance is None else self.balance.record(),
            "clocks": dict(self.clocks),
            "stages": {name: stage.record(self.effort.tolerance) for name, stage in self.stages.items()},
            "answers": [one.record() for one in self.answers],
            "break_even": self.pays.record(),
            "selector": {
                "ms": self.selector_ms,
                "share_of_encoder": self.selector_shares["vision"],
                "share_of_prefill": self.selector_shares["prefill"],
            },
            "memory": {**{name: _sided(pair) for name, pair in memory.items()}, "kv_mib": _sided(self.kv_mib)},
            "flops": {
                **{name: _sided(pair) for name, pair in flops.items()},
                "conventions": {name: _sided(pair) for name, pair in named.items()},
            },
            "verdict": self.verdict,
            "reasons": list(self.reasons),
            "warnings": list(self.warnings),
        }


def _sided(pair: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(_SIDES, pair, strict=True))
