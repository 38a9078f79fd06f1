"""`tokcarve sweep`: methods by budgets on one model, with a report.

`--json`: `Sweep.record()` of exporters/sweeping/engine.py, with `out`, the directory. model, revision, weights_mib,
questions {source, sha256, count, images}, unanswerable, methods, tokens, text_rows, environment {cpu, threads, on,
versions}, gate, limit, data, seed, calibration (null, or the samples: {samples, sha256, count, held_out, seed,
skipped}); points, the unpruned model first, each as in `Row` of exporters/sweeping/table.py; refused and untimed:
"METHOD at N" and why. `out` holds report.html, pareto.svg, pareto.png, sweep.json and points.jsonl, from which the
same command goes on after an interruption.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokcarve.cli import complete
from tokcarve.cli.output import emit_json, print_facts, print_line, print_table, progress_bars
from tokcarve.cli.show import named

if TYPE_CHECKING:
    from tokcarve.exporters.sweeping import Sweep
    from tokcarve.exporters.sweeping.table import Row
    from tokcarve.recipes.schema import Calibration

__all__ = ["sweep"]

POINTS = "points.jsonl"


def sweep(
    model: Annotated[
        str, typer.Argument(help="A directory, a hub id (owner/name) or an alias.", autocompletion=complete.models)
    ],
    methods: Annotated[
        str, typer.Option(help="M,M; random and uniform are always among them.", autocompletion=complete.methods)
    ],
    tokens: Annotated[str, typer.Option(help="Counts left behind the last stage: N,N.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="A directory for the report; the same goes on.")],
    data: Annotated[Path | None, typer.Option(help="Questions as JSONL; the bundled scenes unless told.")] = None,
    limit: Annotated[int | None, typer.Option(help="How many questions; all unless told.")] = None,
    samples: Annotated[
        str | None, typer.Option(help="Decide what methods leave open: scenes, a folder, a JSONL file or a dataset.")
    ] = None,
    sample_count: Annotated[int, typer.Option(min=4, help="How many samples.")] = 64,
    steps: Annotated[int | None, typer.Option(min=1, help="Of training, where a method trains; 512.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Export every point and time it; minutes each.")] = False,
    gate: Annotated[bool, typer.Option("--gate/--no-gate", help="Stop where the unpruned model fails.")] = True,
    on: Annotated[str, typer.Option(help="Where to compute: local, ray or ray:ADDRESS.")] = "local",
    seed: Annotated[int, typer.Option(min=0, help="Of the intervals.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Compare methods at several counts on one model, and write a report."""
    from tokcarve.recipes.atomic import check_target

    chosen, counts = named(methods), _counts(tokens)
    check_target(out)
    _check_folder(out)

    calibration = _calibration(samples, sample_count, steps)
    said = {"--methods": ",".join(chosen), "--tokens": ",".join(map(str, counts)), "--data": data, "--limit": limit}
    if samples is not None:
        said |= {"--samples": samples, "--sample-count": sample_count, "--steps": steps}
    said |= {"--measure": measure, "--no-gate": not gate, "--seed": seed, "-o": out}
    how: dict[str, Any] = {"data": data, "limit": limit, "calibration": calibration, "measure": measure, "gate": gate}
    made = _swept(model, out, said, {"methods": chosen, "tokens": counts, **how, "on": on, "seed": seed})
    if as_json:
        emit_json("sweep", {"out": str(out), **made.record()})
    else:
        _print(made, out)


def _swept(model: str, out: Path, said: Mapping[str, object], how: dict[str, Any]) -> "Sweep":
    """The sweep, with its report written."""
    from tokcarve.exporters.sweeping import sweep as run
    from tokcarve.exporters.sweeping.report import write_report
    from tokcarve.passes.checkpoint import resolve
    from tokcarve.passes.inputs.images import load_image_processor

    with progress_bars() as progress:
        made = run(model, points=out / POINTS, tell=progress, **how)
    write_report(made, load_image_processor(resolve(model).path), out, _command(model, said))
    return made


def _command(model: str, said: Mapping[str, object]) -> list[str]:
    """What repeats the sweep: flags by name, without those that are off."""
    words = ["tokcarve", "sweep", model]
    for name, value in said.items():
        if value is True:
            words.append(name)
        elif value is not None and value is not False:
            words += [name, str(value)]
    return words


def _counts(text: str) -> list[int]:
    """The counts of N,N; BudgetError for anything else."""
    from tokcarve.passes.errors import BudgetError

    try:
        return [int(one) for one in text.split(",")]
    except ValueError:
        raise BudgetError(f"--tokens {text} is no list of counts; give some such as 64,128") from None


def _calibration(samples: str | None, count: int, steps: int | None) -> "Calibration | None":
    """RecipeError for --steps without samples."""
    from tokcarve.passes.errors import RecipeError
    from tokcarve.recipes.schema import Calibration

    if samples is None and steps is not None:
        raise RecipeError(f"--steps {steps} is about training on samples, and there are none; add --samples scenes")
    return None if samples is None else Calibration(samples=samples, count=count, steps=steps)


def _check_folder(out: Path) -> None:
    """ArtifactError for a directory with files that are not of a sweep, among which ours would be lost."""
    from tokcarve.passes.errors import ArtifactError

    if out.is_dir() and any(out.iterdir()) and not (out / POINTS).is_file():
        raise ArtifactError(f"{out} holds files and no {POINTS}, so it is no sweep to go on with; choose another -o")


def _print(made: "Sweep", out: Path) -> None:
    from tokcarve.exporters.evaluation.questions import asked_about

    asked = made.asked
    print_facts(made.model, {"asked": asked_about(len(asked.questions), max(asked.groups) + 1)})
    rows = [
        (
            f"{row.name} *" if row.front else row.name,
            row.tokens,
            f"{100 * row.cost:.1f}",
            f"{100 * row.score:.1f}",
            f"{100 * row.loyalty:.1f}",
            _against(row),
        )
        for row in made.rows
    ]
    heads = ("method", "tokens", "FLOPs %", "right %", "same %", "beside the best control")
    print_table("points", heads, rows)
    print_line("* no other point is as cheap and as good; same: answers equal to the unpruned model's")
    for name, why in made.refused.items():
        print_line(f"not possible: {name}: {why}")
    for name, why in made.untimed.items():
        print_line(f"not timed: {name}: {why}")
    print_line(f"report: {out / 'report.html'}")


def _against(row: "Row") -> str:
    if row.against_control is None:
        return ""
    gap, low, high = (None if one is None else f"{100 * one:+.1f}" for one in row.against_control)
    return f"{gap} to {row.control}" + ("" if low is None else f" [{low}, {high}]")
