"""What an exported artifact costs and what it saved: pruned beside unpruned, in turn, in one run.

Every stage is timed alone (encoder, embedding, prefill, cache, decode) and whole answers through all of them, both
sides in turn, until the medians are known well enough. Time to first token is encoder, embedding and prefill together,
from pixels and token ids; preparing image and text is the same for both sides and left out. Peak memory is measured in
two further processes, one per side. docs/profile.md explains every number; profile_record.py has their form as JSON.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from tokcarve.exporters.device.answers import answers_of, break_even, check_answers, decode_share
from tokcarve.exporters.device.balance import measure_balance
from tokcarve.exporters.device.bench import Bench, Tick
from tokcarve.exporters.device.clocks import Watch
from tokcarve.exporters.device.face import ExportRecord, Side
from tokcarve.exporters.device.machine import load_now, this_machine
from tokcarve.exporters.device.memory import Memory, fit, measure_memory
from tokcarve.exporters.device.profile_record import Profile
from tokcarve.exporters.device.rounds import Effort, Samples, ratios
from tokcarve.exporters.device.session import open_face
from tokcarve.exporters.device.stages import STAGES, answer_name
from tokcarve.exporters.device.timing import distribution
from tokcarve.exporters.device.verdict import Stage
from tokcarve.exporters.device.work import ELEMENT_BYTES
from tokcarve.passes.flops import Cut, Flops, Rows, conventions, count_flops, decode_flops, kv_bytes, rows_of

__all__ = ["Profile", "Tick", "profile"]


def profile(
    artifact: Path,
    schedule: Sequence[Cut],
    *,
    budget: int | None = None,
    effort: Effort | None = None,
    answers: Sequence[int] | None = None,
    threads: int | None = None,
    tick: Tick | None = None,
    load: float | None = None,
) -> Profile:
    """Measures the `ort` face of `artifact`, which was carved by `schedule`; of a set one budget, else the largest.

    `effort` is how long, by default until the intervals are within 3 %; `answers` the lengths of whole answers, by
    default 1, 16 and 64 tokens as far as the export holds them; `tick` is called after every round; `load` is the
    machine's before any work of this program, read here unless told. Raises ExportError for numbers out of range or
    graphs that do not run, ArtifactError for a face that was changed.
    """
    load = load_now() if load is None else load
    record = (face := open_face(artifact, threads)).record
    effort, lengths = (effort or Effort()).checked(), check_answers(answers, record.max_new)
    sides = (record.side(False, budget), record.baseline)
    say: Tick = tick or (lambda what, done, total: None)
    memory = _memory(artifact, threads, say, budget)
    say("machine", 0, 1)
    balance = measure_balance(face)
    say("machine", 1, 1)
    bench, watch = _measure(Bench(face, effort=effort, answers=(1, *lengths), together=fit(memory), budget=budget), say)
    rows = tuple(_rows(record, schedule, side) for side in sides)
    flops = tuple(_flops(record, one, side) for one, side in zip(rows, sides, strict=True))
    return Profile(
        artifact=artifact,
        face=record,
        side=sides[0],
        machine=this_machine(bench.provider, bench.fell_back, threads=threads, dtype=record.dtype, load=load),
        balance=balance,
        clocks=watch.record(),
        effort=effort,
        together=bench.together,
        stages=_stages(bench, flops, lengths[-1]),
        answers=answers_of(bench.samples, lengths),
        pays=break_even(bench.samples),
        decode_share=decode_share(bench.samples, lengths[-1]),
        selector_shares=bench.shares,
        memory=memory,
        kv_mib=(_kv_mib(record, sides[0]), _kv_mib(record, sides[1])),
        tokens_mean=(_mean(rows[0]), _mean(rows[1])),
        flops=(flops[0], flops[1]),
        prefill_conventions=(conventions(record.geometry, rows[0]), conventions(record.geometry, rows[1])),
    )


def _memory(artifact: Path, threads: int | None, say: Tick, budget: int | None) -> tuple[Memory, Memory]:
    pruned = measure_memory(artifact, baseline=False, threads=threads, budget=budget)
    say("memory", 1, 2)
    unpruned = measure_memory(artifact, baseline=True, threads=threads)
    say("memory", 2, 2)
    return pruned, unpruned


def _measure(bench: Bench, say: Tick) -> tuple[Bench, Watch]:
    """Runs `bench`, and looks at clocks between its rounds."""
    watch = Watch()

    def follow(what: str, done: int, total: int) -> None:
        watch.look()
        say(what, done, total)

    bench.run(follow)
    return bench, watch


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


def _kv_mib(record: ExportRecord, side: Side) -> float:
    cached = kv_bytes(record.geometry.text, side.capacities, ELEMENT_BYTES[record.dtype])
    return record.batch * cached / 2**20


def _stages(bench: Bench, flops: Sequence[Flops], longest: int) -> dict[str, Stage]:
    """The stages, and the answers of one and of the most tokens."""
    ratio = {name: getattr(flops[1], name) / getattr(flops[0], name) for name in ("vision", "prefill", "decode")}
    soonest = [one.vision + one.prefill for one in flops]
    predicted: Mapping[str, float] = {
        "encoder": ratio["vision"],
        "prefill": ratio["prefill"],
        "decode": ratio["decode"],
        "first_token": soonest[1] / soonest[0],
    }
    names = {**{name: name for name in STAGES}, "first_token": answer_name(1), "end_to_end": answer_name(longest)}
    return {
        name: _stage(bench.samples[sample], predicted.get(name), bench.rounds[sample]) for name, sample in names.items()
    }


def _stage(samples: Samples, predicted: float | None, rounds: int) -> Stage:
    return Stage(
        pruned=distribution(samples[0]),
        unpruned=distribution(samples[1]),
        ratio=distribution(ratios(samples)),
        predicted=predicted,
        rounds=rounds,
    )
