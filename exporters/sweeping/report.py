"""A sweep as files: one HTML page that loads nothing, the plot as PNG and SVG, and everything as JSON."""

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokcarve.exporters.pictures.kept import Column, Kept, Look
from tokcarve.exporters.pictures.page import gallery, render
from tokcarve.exporters.sweeping.engine import Sweep
from tokcarve.exporters.sweeping.plot import as_png, as_svg, lay_out
from tokcarve.exporters.sweeping.table import Row
from tokcarve.passes.inputs.images import ImageProcessor
from tokcarve.recipes.atomic import replace_file

__all__ = ["FILES", "write_report"]

FILES = ("report.html", "pareto.svg", "pareto.png", "sweep.json")


_SAMPLES = {"--samples": "--samples", "--sample-count": "--limit", "--steps": "--steps"}
"""Options of `sweep` about samples, and what `compress` calls them."""


def write_report(made: Sweep, processor: ImageProcessor, out: Path, command: Sequence[str]) -> None:
    """Writes FILES to `out`, which exists; `command` is what repeats the sweep."""
    layout = lay_out(made.rows)
    record = made.record() | {"command": shlex.join(command)}
    page = render(
        "sweep.html",
        plot=layout,
        alone=False,
        sweep=record,
        rows=made.rows,
        families=list(made.rows[0].families),
        timed=any(row.measured is not None for row in made.rows),
        galleries=_galleries(made, processor),
        commands=_commands(made, command),
    )
    contents: dict[str, str | bytes] = dict(
        zip(FILES, (page, as_svg(layout), as_png(layout), json.dumps(record, indent=2) + "\n"), strict=True)
    )
    for name, content in contents.items():
        replace_file(out / name, content)


def _galleries(made: Sweep, processor: ImageProcessor) -> list[dict[str, Any]]:
    """What every method keeps of the first picture, count by count."""
    first = made.asked.questions[0]
    image = first.open()
    found = []
    for count in dict.fromkeys(row.tokens for row in made.rows[1:]):
        pairs = [(row, kept) for row, kept in zip(made.rows, made.kept, strict=True) if row.tokens == count]
        look = Look(
            image=first.picture,
            size=image.size,
            seen=processor.seen(*image.size),
            grid=made.geometry.vision.grid,
            prompt=first.text,
            columns=tuple(_column(row, kept, made) for row, kept in pairs),
        )
        found.append({**gallery(look, image), "tokens": count})
    return found


def _column(row: Row, kept: dict[str, Any], made: Sweep) -> Column:
    groups = kept["stands_for"]
    stage = Kept(
        site=kept["site"],
        total=kept["total"],
        keep=kept["keep"],
        how=kept["how"],
        patches=tuple(kept["kept"]),
        groups=None if groups is None else tuple(tuple(group) for group in groups),
    )
    return Column(
        name=row.name,
        method=row.method,
        runtime="torch",
        source=made.model,
        tokens=row.tokens,
        total=made.geometry.total,
        stages=(stage,) if kept["site"] else (),
    )


def _commands(made: Sweep, command: Sequence[str]) -> list[str]:
    """The sweep again, and every point of the front on its own."""
    limit = [] if made.about["limit"] is None else ["--limit", str(made.about["limit"])]
    data = [] if made.about["data"] is None else ["--data", made.about["data"]]
    samples = [word for flag, as_flag in _SAMPLES.items() for word in _given(command, flag, as_flag)]
    gate = [flag for flag in ("--no-gate",) if flag in command]
    lines = [shlex.join(command)]
    for row in made.rows[1:]:
        if row.front:
            name = f"{row.method}-{row.tokens}"
            point = ["--method", row.method, "--tokens", str(row.tokens)]
            own = [] if row.is_control else samples
            lines.append(shlex.join(["tokcarve", "compress", made.model, *point, *own, "-o", name]))
            lines.append(shlex.join(["tokcarve", "eval", name, "--runtime", "torch", *limit, *data, *gate]))
    return lines


def _given(command: Sequence[str], flag: str, as_flag: str) -> list[str]:
    """An option of the sweep as `compress` calls it; nothing where it was not given."""
    return [as_flag, command[command.index(flag) + 1]] if flag in command else []
