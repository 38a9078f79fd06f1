"""`tokcarve eval`: what an artifact does to answers, beside the unpruned model and controls.

`--json`: `Evaluation.record()`, described in docs/json.md and docs/evaluation.md; the same is written as
evaluation.json, with evaluation.md and answers.jsonl, to `--out`.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tokcarve.cli.output import emit_json, print_line, print_table, progress_bars

__all__ = ["eval"]


def eval(
    artifact: Annotated[Path | None, typer.Argument(help="The last one written here unless told.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="JSONL of image, question, answer or answers; the bundled scenes unless told.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many questions.")] = None,
    runtime: Annotated[Literal["ort", "torch"], typer.Option(help="Exported graphs, or the model in torch.")] = "ort",
    tokens: Annotated[int | None, typer.Option(help="Of a budget set: this one, not the router's.")] = None,
    mean_tokens: Annotated[int | None, typer.Option(help="Of a budget set: route for this mean.")] = None,
    max_new: Annotated[int | None, typer.Option(help="Most tokens of an answer; 16.")] = None,
    control: Annotated[
        list[Path] | None,
        typer.Option(help="An exported control at the same count, in place of those in torch; repeat."),
    ] = None,
    controls: Annotated[bool, typer.Option(help="Random and uniform tokens at the same count, beside.")] = True,
    floor: Annotated[float | None, typer.Option(help="Share that the unpruned model must answer right.")] = None,
    gate: Annotated[bool, typer.Option(help="Report nothing where the unpruned model answers too badly.")] = True,
    threads: Annotated[int | None, typer.Option(help="CPU threads per operator; the runtime's own choice.")] = None,
    seed: Annotated[int, typer.Option(help="Of the bootstrap.")] = 0,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="ARTIFACT/evaluation unless told.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Score answers: the artifact beside the unpruned model and controls, with paired intervals."""
    from tokcarve.exporters.evaluation import evaluate
    from tokcarve.exporters.evaluation.files import FOLDER
    from tokcarve.recipes.artifact import last, read_artifact

    found = read_artifact(artifact if artifact is not None else last())
    place = out if out is not None else found.directory / FOLDER
    with progress_bars() as progress:
        made = evaluate(
            found,
            data=data,
            limit=limit,
            runtime=runtime,
            tokens=tokens,
            mean_tokens=mean_tokens,
            controls=tuple(control or ()) if controls else None,
            max_new=max_new,
            floor=floor,
            gate=gate,
            threads=threads,
            seed=seed,
            out=place,
            tell=progress,
        )
    record = {**made.record(), "out": str(place)}
    emit_json("eval", record) if as_json else _print(record)


def _print(record: dict[str, Any]) -> None:
    from tokcarve.exporters.evaluation.questions import asked_about
    from tokcarve.exporters.evaluation.report import tables

    for table in tables(record):
        print_table(table.title, table.heads, table.rows)
    data, gate = record["data"], record["gate"]
    print_line(f"{record['verdict']}.")
    print_line(f"{asked_about(data['questions'], data['images'])} of {data['source']}; gate: {gate['detail']}")
    if not gate["passed"]:
        print_line("warning: the gate is closed, and was ignored as asked: these scores mean little")
    for note in record["notes"]:
        print_line(f"note: {note}")
    for reason in data["unanswerable"]:
        print_line(f"unanswerable: {reason}")
    print_line(f"written to {record['out']}")
