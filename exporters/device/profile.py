"""What an exported artifact costs and what it saved: pruned beside unpruned, in turn, in one run.

Stages are loaded and timed one after the other (vision, embedding, prefill, decode), both sides in turn, so that no
more than one stage of each side is in memory. The graphs have fixed shapes, so a made-up full prompt costs what any
prompt does. Time to first token is encoder, embedding and prefill together, from pixels and token ids; preparing image
and text is the same for both sides and left out. Peak memory is measured in two further processes, one per side.

`Profile.record()` is the JSON of `tokcarve profile --json`:

    format 1, artifact, batch, max_text, max_new, warm_up, repeats, tokens {pruned, unpruned} that enter the
        language model, tokens_mean {pruned, unpruned} over its layers,
    machine {cpu, cores, load, threads, provider, fell_back, onnxruntime, dtype},
    stages {encoder, embedding, prefill, decode, first_token, end_to_end}:
        pruned, unpruned {p50_ms, p95_ms, mean_ms, min_ms}, speedup (of the p50), predicted (by FLOPs, or null),
        realised (speedup / predicted, or null); encoder holds connector and selector, decode is one token of each row,
        end_to_end is a first token and max_new - 1 median decode steps
    selector {ms, share_of_encoder, share_of_prefill}
    memory {peak_mib, start_mib, kv_mib} x {pruned, unpruned}: resident MiB of the process at its peak and before any
        graph was loaded, and the KV buffers as exported
    flops {encoder, connector, prefill, decode} x {pruned, unpruned} and conventions {all, macs, fastv} of the prefill:
        per image, as passes/flops.py counts them
    verdict, warnings
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tokcarve.exporters.device.bench import Bench, Samples
from tokcarve.exporters.device.face import ExportRecord, Side
from tokcarve.exporters.device.machine import Machine, this_machine
from tokcarve.exporters.device.memory import Memory, measure_memory
from tokcarve.exporters.device.session import open_face
from tokcarve.exporters.device.timing import distribution
from tokcarve.exporters.device.verdict import Stage, verdict, warnings
from tokcarve.passes.errors import ExportError
from tokcarve.passes.flops import Cut, Flops, Rows, conventions, count_flops, decode_flops, kv_bytes, rows_of

__all__ = ["Profile", "Tick", "profile", "rounds"]

Tick = Callable[[str], None]
_SIDES = ("pruned", "unpruned")
_PARTS = ("encoder", "connector", "prefill", "decode")
_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, kw_only=True)
class Profile:
    """All that was measured and computed; pairs are (pruned, unpruned), `side` is the pruned one."""

    artifact: Path
    face: ExportRecord
    side: Side
    machine: Machine
    warm_up: int
    repeats: int
    max_new: int
    stages: Mapping[str, Stage]
    selector_shares: Mapping[str, float]
    memory: tuple[Memory, Memory]
    kv_mib: tuple[float, float]
    tokens_mean: tuple[float, float]
    flops: tuple[Flops, Flops]
    prefill_conventions: tuple[Mapping[str, int], Mapping[str, int]]

    @property
    def selector_ms(self) -> float:
        """Milliseconds of the pruned encoder and prefill that selection takes."""
        encoder, prefill = (self.stages[name].pruned.p50 for name in ("encoder", "prefill"))
        return self.selector_shares["vision"] * encoder + self.selector_shares["prefill"] * prefill

    @property
    def verdict(self) -> str:
        """One sentence: what was gained, of what was possible, and why no more."""
        return verdict(self.stages, self.max_new)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Whatever is slower than unpruned, and what makes these figures doubtful."""
        return warnings(self.stages, self.machine)

    def record(self) -> dict[str, Any]:
        """These figures as JSON; the head of this file says what is where."""
        flops = {name: [getattr(one, name) for one in self.flops] for name in _PARTS}
        memory = {name: [getattr(one, name) for one in self.memory] for name in ("peak_mib", "start_mib")}
        named = {name: [counts[name] for counts in self.prefill_conventions] for name in self.prefill_conventions[0]}
        return {
            "format": 1,
            "artifact": str(self.artifact),
            "batch": self.face.batch,
            "max_text": self.face.max_text,
            "max_new": self.max_new,
            "warm_up": self.warm_up,
            "repeats": self.repeats,
            "tokens": _sided([self.side.tokens, self.face.baseline.tokens]),
            "tokens_mean": _sided(self.tokens_mean),
            "machine": self.machine.record(),
            "stages": {name: stage.record() for name, stage in self.stages.items()},
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
            "warnings": list(self.warnings),
        }


def _sided(pair: Sequence[Any]) -> dict[str, Any]:
    return dict(zip(_SIDES, pair, strict=True))


def rounds(repeats: int, warm_up: int) -> int:
    """How often `tick` is called by a profile: once per round of each stage, and once per memory measurement."""
    return 4 * (repeats + warm_up) + 2


def profile(
    artifact: Path,
    schedule: Sequence[Cut],
    *,
    budget: int | None = None,
    repeats: int = 20,
    warm_up: int = 3,
    max_new: int | None = None,
    threads: int | None = None,
    tick: Tick | None = None,
) -> Profile:
    """Measures the `ort` face of `artifact`, which was carved by `schedule`; of a set one budget, else the largest.

    `max_new` is the answer length of the end-to-end figure (default: what was exported); `tick(what)` is called after
    every round. Raises ExportError for numbers out of range or graphs that do not run, ArtifactError for a face that
    was changed.
    """
    record = (face := open_face(artifact, threads)).record
    new = _checked(record, max_new, repeats, warm_up)
    say: Tick = tick or (lambda _: None)
    memory = _memory(artifact, threads, say, budget)
    bench = Bench(face, warm_up=warm_up, repeats=repeats, tick=say, budget=budget)
    bench.run()
    geometry, sides = record.geometry, (record.side(False, budget), record.baseline)
    rows = [_rows(record, schedule, side) for side in sides]
    flops = [_flops(record, one, side) for one, side in zip(rows, sides, strict=True)]
    kv = [record.batch * kv_bytes(geometry.text, side.capacities, _BYTES[record.dtype]) / 2**20 for side in sides]
    named = [conventions(geometry, one) for one in rows]
    return Profile(
        artifact=artifact,
        face=record,
        side=sides[0],
        machine=this_machine(
            provider=bench.provider,
            fell_back=bench.fell_back,
            threads=threads,
            dtype=record.dtype,
            load=bench.load,
        ),
        warm_up=warm_up,
        repeats=repeats,
        max_new=new,
        stages=_stages(bench.samples, flops, new),
        selector_shares=bench.shares,
        memory=memory,
        kv_mib=(kv[0], kv[1]),
        tokens_mean=(_mean(rows[0]), _mean(rows[1])),
        flops=(flops[0], flops[1]),
        prefill_conventions=(named[0], named[1]),
    )


def _checked(record: ExportRecord, max_new: int | None, repeats: int, warm_up: int) -> int:
    new = record.max_new if max_new is None else max_new
    if not 1 <= new <= record.max_new:
        raise ExportError(f"max_new={new} does not fit this export; choose 1..{record.max_new}")
    if repeats < 1 or warm_up < 0:
        raise ExportError(f"repeats={repeats} with warm-up {warm_up} measures nothing; choose 1 or more repeats")
    return new


def _memory(artifact: Path, threads: int | None, tick: Tick, budget: int | None) -> tuple[Memory, Memory]:
    pruned = measure_memory(artifact, baseline=False, threads=threads, budget=budget)
    tick("memory")
    unpruned = measure_memory(artifact, baseline=True, threads=threads)
    tick("memory")
    return pruned, unpruned


def _rows(record: ExportRecord, schedule: Sequence[Cut], side: Side) -> Rows:
    """What each part of a side computes; a layer may store fewer rows than it computed."""
    cuts = () if side is record.baseline else schedule
    return rows_of(record.geometry, cuts, record.max_text)


def _mean(rows: Rows) -> float:
    return sum(rows.text) / len(rows.text) - rows.text_only


def _flops(record: ExportRecord, rows: Rows, side: Side) -> Flops:
    """FLOPs of one image; a decode step of a static graph multiplies by every row of the cache, filled or not."""
    whole = count_flops(record.geometry, rows)
    return replace(whole, decode=decode_flops(record.geometry.text, side.capacities))


def _stages(samples: Mapping[str, Samples], flops: Sequence[Flops], max_new: int) -> dict[str, Stage]:
    """The measured stages and, from their samples, the first token and the whole answer."""
    first, whole = [], []
    for side in (0, 1):
        parts = zip(*(samples[name][side] for name in ("vision", "embedding", "prefill")), strict=True)
        first.append([sum(part) for part in parts])
        step = distribution(samples["decode"][side]).p50
        whole.append([start + (max_new - 1) * step for start in first[side]])
    ratio = {name: getattr(flops[1], name) / getattr(flops[0], name) for name in ("vision", "prefill", "decode")}
    soonest = [one.vision + one.prefill for one in flops]
    return {
        "encoder": _stage(samples["vision"], ratio["vision"]),
        "embedding": _stage(samples["embedding"], None),
        "prefill": _stage(samples["prefill"], ratio["prefill"]),
        "decode": _stage(samples["decode"], ratio["decode"]),
        "first_token": _stage(tuple(first), soonest[1] / soonest[0]),
        "end_to_end": _stage(tuple(whole), None),
    }


def _stage(samples: Samples, predicted: float | None) -> Stage:
    return Stage(pruned=distribution(samples[0]), unpruned=distribution(samples[1]), predicted=predicted)
