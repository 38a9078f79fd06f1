"""`tokcarve profile`: what an exported artifact costs beside the unpruned model, and what it saved.

`--json`: `Profile.record()`, described at the head of exporters/device/profile_record.py; of a budget set
`SetProfile.record()`, described at the head of exporters/device/profile_set.py; the same is kept in `--out`. Where it
was asked for, also

    trace: the file; sweep {wish, suggested, tolerance, points}, each point {tokens, rows, prefill (milliseconds),
        over_wish, tight, flops_over_wish, step}; batches: a list of {batch, new_tokens, first_token_ms, end_to_end_ms,
        images_per_second, tokens_per_second, each {pruned, unpruned}, first_token_speedup, end_to_end_speedup}
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from tokcarve.cli.bare import BARE
from tokcarve.cli.output import as_object, emit_json, print_line, progress_bars

__all__ = ["profile"]

_AUTO = BARE["--sweep-tokens"]


def profile(
    artifact: Annotated[Path | None, typer.Argument(help="The last one written here unless told.")] = None,
    repeats: Annotated[str, typer.Option(help="Rounds of every stage on both sides; auto: until they agree.")] = _AUTO,
    tolerance: Annotated[
        float, typer.Option(help="Until when auto goes on: 0.03 is 95 % intervals within ±3 % of the medians.")
    ] = 0.03,
    seconds: Annotated[float, typer.Option(help="About how long auto goes on at most.")] = 60.0,
    warm_up: Annotated[int, typer.Option(help="Rounds before that, not counted.")] = 3,
    answers: Annotated[
        str | None, typer.Option(help="Lengths of whole answers, with commas; 1,16,64 where the export holds them.")
    ] = None,
    batch: Annotated[str | None, typer.Option(help="Also what other batches cost, as 1,2,4,8.")] = None,
    sweep_tokens: Annotated[
        str | None, typer.Option(help="Also what other token counts cost, as 64,72,80; alone: some around its own.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where its JSON is kept; ARTIFACT/profile.json unless told.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option(help="Also write one answer of each side as a trace for ui.perfetto.dev.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads per operator; ONNX Runtime's own choice.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Time the exported graphs beside the unpruned model's, in turn, and say what was gained."""
    from tokcarve.exporters.device.rounds import Effort

    count = None if repeats == _AUTO else _numbers("--repeats", repeats, f"a number, or {_AUTO}")[0]
    effort = Effort(repeats=count, warm_up=warm_up, tolerance=tolerance, seconds=seconds).checked()
    lengths = None if answers is None else _numbers("--answers", answers)
    batches = [] if batch is None else _numbers("--batch", batch)
    alone = sweep_tokens in (None, _AUTO)
    tokens = None if sweep_tokens is None else [] if alone else _numbers("--sweep-tokens", sweep_tokens)
    how = {"effort": effort, "answers": lengths, "threads": threads}
    _run(artifact, how, (tokens, batches), trace, out, as_json)


def _run(
    artifact: Path | None,
    how: dict[str, Any],
    sweeps: tuple[list[int] | None, list[int]],
    trace: Path | None,
    out: Path | None,
    as_json: bool,
) -> None:
    from tokcarve.cli.profile_sweep import measure_sweep, prepare_sweep, print_sweep
    from tokcarve.cli.profile_tables import print_profile, print_set, print_verdict
    from tokcarve.exporters.device.face import check_origin, read_export
    from tokcarve.exporters.device.machine import load_now
    from tokcarve.exporters.device.profile import profile as measure
    from tokcarve.exporters.device.profile_set import profile_set
    from tokcarve.exporters.device.session import open_face
    from tokcarve.exporters.device.side_by_side import PROFILE
    from tokcarve.exporters.device.trace import check_trace, trace_answers, write_trace
    from tokcarve.recipes.artifact import last, read_artifact

    found = read_artifact(artifact if artifact is not None else last())
    check_origin(found.directory, read_export(found.directory), found.manifest)
    for place, check in ((trace, check_trace), (out, _check_out)):
        if place is not None:
            check(place)
    how["load"] = load_now()
    with progress_bars() as progress:
        counts = prepare_sweep(found, *sweeps, progress)
        if found.manifest.router is not None:
            several = profile_set(found.directory, found.manifest, **how, tick=progress)
            made, record = several.largest, several.record()
        else:
            several, made = None, measure(found.directory, found.manifest.schedule, **how, tick=progress)
            record = made.record()
        swept = measure_sweep(made, counts, sweeps[1], how["threads"], progress)
        if sweeps != (None, []):
            record |= swept.record()
        if trace is not None:
            write_trace(trace, trace_answers(open_face(found.directory, how["threads"]), new=made.max_new))
            record["trace"] = str(trace)
    kept = _keep(record, found.directory / PROFILE, out)
    if as_json:
        emit_json("profile", record)
        return
    if several is not None:
        print_set(several)
    print_profile(made)
    print_sweep(swept)
    print_verdict(made)
    print_line(kept if trace is None else f"trace: {trace}, for ui.perfetto.dev\n{kept}")


def _check_out(out: Path) -> None:
    from tokcarve.recipes.atomic import check_file

    check_file(out, (".json",))


def _keep(record: dict[str, Any], place: Path, out: Path | None) -> str:
    """Leaves the record where `compare` looks for it, or in `out`; a sentence on where. An artifact that cannot be
    written, as on a device, costs only this convenience."""
    from tokcarve.passes.errors import ArtifactError
    from tokcarve.recipes.atomic import replace_file

    try:
        replace_file(out or place, as_object("profile", record) + "\n")
    except ArtifactError as error:
        if out is not None:
            raise
        return f"not kept: {error}"
    return f"written to {out or place}"


def _numbers(option: str, text: str, what: str = "numbers with commas, as 1,16,64") -> list[int]:
    from tokcarve.passes.errors import ExportError

    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ExportError(f"{option} {text} is not {what}; give that, or leave the option out") from None
