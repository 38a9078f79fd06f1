"""The tables of `tokcarve profile` for people."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tokcarve.cli.output import print_facts, print_line, print_table

if TYPE_CHECKING:
    from tokcarve.exporters.device.answers import Answer
    from tokcarve.exporters.device.profile import Profile
    from tokcarve.exporters.device.profile_set import SetProfile
    from tokcarve.exporters.device.timing import Distribution
    from tokcarve.exporters.device.verdict import Stage

__all__ = ["print_profile", "print_set", "print_verdict", "sure"]

_ROWS = {
    "encoder": "encoder",
    "prefill": "prefill",
    "first_token": "first token",
    "decode": "decode step",
    "end_to_end": "end to end",
}
_COLUMNS = ("", "pruned", "p95", "unpruned", "p95", "gain", "95 %", "possible")
_CLOCKS = {
    "gpu_mhz": "GPU {} MHz",
    "power_w": "{} W",
    "gpu_c": "{} °C",
    "cpu_mhz": "CPU {} MHz",
    "cpu_percent": "{} % busy",
}


def print_set(made: "SetProfile") -> None:
    """Medians of every budget and what they come to; the largest budget is told of in full behind this."""
    held = made.chooses.held_out
    rows = [
        (str(tokens), f"{share:.0%}", *(_milliseconds(one.stages[key].pruned.p50) for key in _ROWS))
        for (tokens, one), share in zip(made.budgets.items(), held.shares, strict=True)
    ]
    expected = made.expected
    rows.append((f"{held.mean_tokens:.0f} (expected)", "", *(_milliseconds(expected[key]) for key in _ROWS)))
    columns = ("tokens", "share", *_ROWS.values())
    print_table(f"budgets: median milliseconds, shares of {held.images} held-out samples", columns, rows)
    part = made.router.p50 / made.largest.stages["encoder"].unpruned.p50
    print_line(f"router: {made.router.p50:.2f} ms, {part:.1%} of the unpruned encoder, in the expected times")
    print_line("")


def print_profile(made: "Profile") -> None:
    """Stages, answers, sizes, and what was measured how."""
    title = "milliseconds (p50, p95), and the gain beside what FLOPs make possible"
    print_table(title, _COLUMNS, [_row(name, made.stages[key]) for key, name in _ROWS.items()])
    columns = ("new tokens", "pruned", "unpruned", "gain", "95 %", "predicted", "whole / stages")
    print_table(
        "answers: milliseconds, and the gain beside what the stages predict",
        columns,
        [_answer(one) for one in made.answers],
    )
    _print_sizes(made)
    print_facts("measured", _facts(made))
    print_line("")


def print_verdict(made: "Profile") -> None:
    """The sentences: what was gained, why no more, and what to be wary of."""
    print_line(f"{made.verdict}.")
    for reason in made.reasons:
        print_line(f"why: {reason}")
    for warning in made.warnings:
        print_line(f"warning: {warning}")


def _print_sizes(made: "Profile") -> None:
    counts = made.record()
    sizes: dict[str, Mapping[Any, Any]] = {
        "tokens entering": counts["tokens"],
        "mean over layers": counts["tokens_mean"],
        "encoder GFLOP": {side: _giga(made, side, "vision") for side in (0, 1)},
        "prefill GFLOP": {side: _giga(made, side, "prefill") for side in (0, 1)},
        "prefill GMAC, visual rows": _giga_of(counts["flops"]["conventions"]["macs"]),
        "as FastV counts, G": _giga_of(counts["flops"]["conventions"]["fastv"]),
        "KV MiB": counts["memory"]["kv_mib"],
        "peak MiB": counts["memory"]["peak_mib"],
    }
    if None not in counts["memory"]["device_mib"].values():
        sizes["GPU MiB"] = counts["memory"]["device_mib"]
    rows = [(name, *(_number(value) for value in pair.values())) for name, pair in sizes.items()]
    print_table("sizes", ("per image", "pruned", "unpruned"), rows)


def _facts(made: "Profile") -> dict[str, str | None]:
    share = made.selector_ms / sum(made.stages[name].pruned.p50 for name in ("encoder", "prefill"))
    machine, effort, balance = made.machine, made.effort, made.balance
    rounds = f"{made.stages['prefill'].rounds}, after {effort.warm_up} to warm up"
    asked = f"; asked for ±{effort.tolerance:.0%}" if effort.repeats is None else ""
    best = None if balance is None else f"{balance.flops / 1e9:.1f} GFLOP/s, {balance.bytes / 2**30:.1f} GiB/s at best"
    return {
        "selector": f"{made.selector_ms:.3f} ms, {share:.2%} of encoder and prefill",
        "end to end": f"{made.max_new} new tokens, batch {made.face.batch}, {made.face.max_text} text rows",
        "machine": f"{machine.cpu}, {machine.cores} cores, load {machine.load:.1f}",
        "reaches": best,
        "clocks": _clocks(made.clocks),
        "not read": "; ".join(made.clocks["unread"]) or None,
        "runtime": f"ONNX Runtime {machine.onnxruntime} on {machine.provider}, {machine.dtype}",
        "rounds": rounds + asked,
    }


def _clocks(read: Mapping[str, Any]) -> str | None:
    """Medians, under the names of who told them."""
    told = [form.format(_number(read[name]["median"])) for name, form in _CLOCKS.items() if name in read]
    return f"{', '.join(told)} ({read['source']})" if told else None


def _row(name: str, stage: "Stage") -> tuple[str, ...]:
    times = (stage.pruned.p50, stage.pruned.p95, stage.unpruned.p50, stage.unpruned.p95)
    possible = "" if stage.predicted is None else f"{stage.predicted:.2f}x"
    return (name, *(_milliseconds(one) for one in times), f"{stage.speedup:.2f}x", sure(stage.ratio), possible)


def _answer(one: "Answer") -> tuple[str, ...]:
    sums = ", ".join(f"{side.p50:.2f}" for side in one.sums)
    times = (_milliseconds(one.pruned.p50), _milliseconds(one.unpruned.p50))
    return (str(one.new), *times, f"{one.ratio.p50:.2f}x", sure(one.ratio), f"{one.predicted:.2f}x", sums)


def sure(one: "Distribution") -> str:
    """Half the interval of a median, in percent of it."""
    return "?" if one.interval is None else f"±{one.interval.within(one.p50):.1%}"


def _giga(made: "Profile", side: int, part: str) -> float:
    return float(getattr(made.flops[side], part)) / 1e9


def _giga_of(pair: Mapping[str, int]) -> dict[str, float]:
    return {side: count / 1e9 for side, count in pair.items()}


def _milliseconds(value: float) -> str:
    """As few digits as matter, and never more than six characters below a minute."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _number(value: Any) -> str:
    if isinstance(value, int) or value >= 1000:
        return f"{value:.0f}"
    return f"{value:.3g}" if value < 10 else f"{value:.1f}"
