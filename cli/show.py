"""`tokcarve show`: which patches of an image are kept, stage by stage, drawn on the image.

`--json`: `Look.record()` of exporters/pictures/kept.py, with `out`, the file that was written, or null. image, size
[width, height], seen [left, top, right, bottom] (the part of the image that the model sees, in its pixels), grid [rows,
columns] of patches, prompt; columns, one per artifact or method: {name, method, runtime, source, tokens, total, answer,
stages, notes}, stages being {site, total, keep, how, kept, scores, stands_for}: `kept` lists patches row by row from
the top left (-1: the [CLS] row; null: this runtime does not say), `scores` maps patches to scores (null: none here),
`stands_for` lists the patches of every token in `kept` (null: each stands for itself). overlap: {names, last, stages}.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from tokcarve.cli.output import emit_json, print_facts, print_line, print_table, progress_bars

if TYPE_CHECKING:
    from PIL.Image import Image

    from tokcarve.exporters.pictures.kept import Look

__all__ = ["named", "show"]

SUFFIXES = (".png", ".html")


def show(
    image: Annotated[Path, typer.Argument(help="The picture: JPEG, PNG, WebP, BMP or TIFF.")],
    artifact: Annotated[list[Path] | None, typer.Option(help="An artifact; repeat it to compare several.")] = None,
    methods: Annotated[str | None, typer.Option(help="Methods to try on --model, M,M; needs torch.")] = None,
    model: Annotated[str, typer.Option(help="What they are tried on: a directory, a hub id or an alias.")] = "tiny",
    tokens: Annotated[int | None, typer.Option(help="What they keep; 0.11 of all visual tokens unless told.")] = None,
    prompt: Annotated[str | None, typer.Option(help="A question, for methods that read it, and its answer.")] = None,
    runtime: Annotated[Literal["ort", "torch"], typer.Option(help="For --artifact: as exported, or in torch.")] = "ort",
    max_new: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 16,
    last: Annotated[
        bool, typer.Option("--last", help="Of a PNG: one panel per method, what is left at the end.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="FILE.png or FILE.html; nothing is drawn without.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Draw on an image which visual tokens are kept, stage by stage."""
    from tokcarve.exporters.pictures.looking import look_at
    from tokcarve.passes.errors import BudgetError
    from tokcarve.recipes.atomic import check_file, replace_file

    if out is not None:
        check_file(out, SUFFIXES)
    chosen = [] if methods is None else named(methods)
    if tokens is not None and not chosen:
        raise BudgetError(f"--tokens {tokens} is about --methods, and there are none; an artifact has its own count")
    with progress_bars() as progress:
        look, picture = look_at(
            image,
            artifacts=artifact or (),
            methods=chosen,
            model=model,
            tokens=tokens,
            prompt=prompt,
            runtime=runtime,
            new=max_new,
            tell=progress,
        )
    if out is not None:
        replace_file(out, _drawn(look, picture, out, last))
    if as_json:
        emit_json("show", {"out": None if out is None else str(out), **look.record()})
    else:
        _print(look, out)


def named(text: str) -> list[str]:
    """The methods of M,M; MethodError for an empty list or a name given twice."""
    from tokcarve.passes.errors import MethodError

    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise MethodError(f"--methods {text!r} names no method; give some such as vtc_cls,divprune")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise MethodError(f"--methods {text} names {twice} twice; give it once")
    return names


def _drawn(look: "Look", picture: "Image", out: Path, last: bool) -> str | bytes:
    if out.suffix.lower() == ".png":
        from tokcarve.exporters.pictures.sheet import draw_sheet

        return draw_sheet(look, picture, last_only=last)
    from tokcarve.exporters.pictures.page import draw_page

    return draw_page(look, picture)


def _print(look: "Look", out: Path | None) -> None:
    rows, columns = look.grid
    print_facts(look.image, {"patches": f"{rows} x {columns}", "question": look.prompt})
    for column in look.columns:
        answer = "" if column.answer is None else f": {column.answer or '(nothing)'}"
        table = [
            (stage.site, stage.total, stage.keep, stage.how, _said(stage.patches), "yes" if stage.scores else "no")
            for stage in column.stages
        ]
        heads = ("site", "before", "after", "how", "patches known", "scores")
        print_table(f"{column.name}, {column.tokens} of {column.total} ({column.runtime}){answer}", heads, table)
        for note in column.notes:
            print_line(f"note: {note}")
    if len(look.columns) > 1:
        found = look.record()["overlap"]
        cells = [
            (name, *(f"{value:.2f}" for value in row)) for name, row in zip(found["names"], found["last"], strict=True)
        ]
        print_table("overlap of what is left at the end (Jaccard)", ("", *found["names"]), cells)
    if out is not None:
        print_line(f"drawn: {out}")


def _said(patches: tuple[int, ...] | None) -> str:
    return "no" if patches is None else "yes"
