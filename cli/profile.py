"""`tokcarve profile`: what an exported artifact costs beside the unpruned model, and what it saved.

`--json`: `Profile.record()`, described at the head of exporters/device/profile_record.py; of a budget set
`SetProfile.record()`, described at the head of exporters/device/profile_set.py.
"""

from pathlib import Path
from typing import Annotated, Any

import typer

from tokcarve.cli.output import emit_json, print_line, progress_bars

__all__ = ["profile"]

_AUTO = "auto"


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
    trace: Annotated[
        Path | None, typer.Option(help="Also write one answer of each side as a trace for ui.perfetto.dev.")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads per operator; ONNX Runtime's own choice.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Time the exported graphs beside the unpruned model's, in turn, and say what was gained."""
    from tokcarve.cli.profile_tables import print_profile, print_set
    from tokcarve.exporters.device.face import check_origin, read_export
    from tokcarve.exporters.device.profile import profile as measure
    from tokcarve.exporters.device.profile_set import profile_set
    from tokcarve.exporters.device.rounds import Effort
    from tokcarve.exporters.device.session import open_face
    from tokcarve.exporters.device.trace import check_trace, trace_answers, write_trace
    from tokcarve.recipes.artifact import last, read_artifact

    found = read_artifact(artifact if artifact is not None else last())
    check_origin(found.directory, read_export(found.directory), found.manifest)
    count = None if repeats == _AUTO else _numbers("--repeats", repeats, f"a number, or {_AUTO}")[0]
    how: dict[str, Any] = {
        "effort": Effort(repeats=count, warm_up=warm_up, tolerance=tolerance, seconds=seconds),
        "answers": None if answers is None else _numbers("--answers", answers, "numbers with commas, as 1,16,64"),
        "threads": threads,
    }
    if trace is not None:
        check_trace(trace)
    with progress_bars() as progress:
        how["tick"] = progress
        if found.manifest.router is not None:
            several = profile_set(found.directory, found.manifest, **how)
            made, record = several.largest, several.record()
        else:
            several, made = None, measure(found.directory, found.manifest.schedule, **how)
            record = made.record()
        if trace is not None:
            write_trace(trace, trace_answers(open_face(found.directory, threads), new=made.max_new))
            record["trace"] = str(trace)
    if as_json:
        emit_json("profile", record)
        return
    if several is not None:
        print_set(several)
    print_profile(made)
    if trace is not None:
        print_line(f"trace: {trace}, for ui.perfetto.dev")


def _numbers(option: str, text: str, what: str) -> list[int]:
    from tokcarve.passes.errors import ExportError

    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise ExportError(f"{option} {text} is not {what}; give that, or leave the option out") from None
