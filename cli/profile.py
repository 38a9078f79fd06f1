"""`tokcarve profile`: what an exported artifact costs beside the unpruned model, and what it saved.

`--json`: `Profile.record()`, described at the head of exporters/device/profile.py; of a budget set
`SetProfile.record()`, described at the head of exporters/device/profile_set.py.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokcarve.cli.output import emit_json, print_facts, print_line, print_table, progress_bars

if TYPE_CHECKING:
    from tokcarve.exporters.device.profile import Profile
    from tokcarve.exporters.device.profile_set import SetProfile
    from tokcarve.exporters.device.verdict import Stage

__all__ = ["profile"]

_ROWS = {
    "encoder": "encoder",
    "prefill": "prefill",
    "first_token": "first token",
    "decode": "decode step",
    "end_to_end": "end to end",
}


def profile(
    artifact: Annotated[Path | None, typer.Argument(help="The last one written here unless told.")] = None,
    repeats: Annotated[int, typer.Option(help="How often each stage of each side is timed.")] = 20,
    warm_up: Annotated[int, typer.Option(help="Rounds before that, not counted.")] = 3,
    max_new: Annotated[int | None, typer.Option(help="Answer length of `end to end`; as many as exported.")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads per operator; ONNX Runtime's own choice.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Time the exported graphs beside the unpruned model's, in turn, and say what was gained."""
    from tokcarve.exporters.device.face import check_origin, read_export
    from tokcarve.exporters.device.profile import profile as measure
    from tokcarve.exporters.device.profile import rounds
    from tokcarve.exporters.device.profile_set import profile_set, set_rounds
    from tokcarve.recipes.artifact import last, read_artifact

    found = read_artifact(artifact if artifact is not None else last())
    check_origin(found.directory, read_export(found.directory), found.manifest)
    several = len(found.manifest.counts) if found.manifest.router is not None else 0
    total = set_rounds(repeats, warm_up, several) if several else rounds(repeats, warm_up)
    with progress_bars() as progress:
        done = 0

        def tick(_: str) -> None:
            nonlocal done
            done += 1
            if progress is not None:
                progress("measuring", done, total)

        how: dict[str, Any] = {"repeats": repeats, "warm_up": warm_up, "max_new": max_new, "threads": threads}
        if several:
            whole = profile_set(found.directory, found.manifest, **how, tick=tick)
            made, record = whole.largest, whole.record()
        else:
            made = measure(found.directory, found.manifest.schedule, **how, tick=tick)
            record = made.record()
    if as_json:
        emit_json("profile", record)
        return
    if several:
        _print_set(whole)
    _print(made)


def _print_set(made: "SetProfile") -> None:
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


def _print(made: "Profile") -> None:
    columns = ("", "pruned", "p95", "unpruned", "p95", "gain", "possible", "reached")
    title = "milliseconds (p50, p95), and the gain beside what FLOPs make possible"
    print_table(title, columns, [_row(name, made.stages[key]) for key, name in _ROWS.items()])
    counts = made.record()
    share = made.selector_ms / sum(made.stages[name].pruned.p50 for name in ("encoder", "prefill"))
    sizes = {
        "tokens entering": counts["tokens"],
        "mean over layers": counts["tokens_mean"],
        "encoder GFLOP": {side: _giga(made, side, "vision") for side in (0, 1)},
        "prefill GFLOP": {side: _giga(made, side, "prefill") for side in (0, 1)},
        "KV MiB": counts["memory"]["kv_mib"],
        "peak MiB": counts["memory"]["peak_mib"],
    }
    rows = [(name, *(_number(value) for value in pair.values())) for name, pair in sizes.items()]
    print_table("sizes", ("per image", "pruned", "unpruned"), rows)
    machine = made.machine
    print_facts(
        "measured",
        {
            "selector": f"{made.selector_ms:.3f} ms, {share:.2%} of encoder and prefill",
            "end to end": f"{made.max_new} new tokens, batch {made.face.batch}, {made.face.max_text} text rows",
            "machine": f"{machine.cpu}, {machine.cores} cores, load {machine.load:.1f}",
            "runtime": f"ONNX Runtime {machine.onnxruntime} on {machine.provider}, {machine.dtype}",
            "repeats": f"{made.repeats}, after {made.warm_up} to warm up",
        },
    )
    print_line("")
    print_line(f"{made.verdict}.")
    for warning in made.warnings:
        print_line(f"warning: {warning}")


def _row(name: str, stage: "Stage") -> tuple[str, ...]:
    times = (stage.pruned.p50, stage.pruned.p95, stage.unpruned.p50, stage.unpruned.p95)
    possible = "" if stage.predicted is None else f"{stage.predicted:.2f}x"
    realised = "" if stage.realised is None else f"{stage.realised:.0%}"
    return (name, *(_milliseconds(one) for one in times), f"{stage.speedup:.2f}x", possible, realised)


def _giga(made: "Profile", side: int, part: str) -> float:
    return float(getattr(made.flops[side], part)) / 1e9


def _milliseconds(value: float) -> str:
    """As few digits as matter, and never more than six characters below a minute."""
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def _number(value: Any) -> str:
    if isinstance(value, int) or value >= 1000:
        return f"{value:.0f}"
    return f"{value:.3g}" if value < 10 else f"{value:.1f}"
