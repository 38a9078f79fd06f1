"""Accuracy against cost as a plot: laid out once, then drawn as SVG (also inside the report) and as PNG."""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from tokcarve.exporters.pictures.page import render
from tokcarve.exporters.sweeping.table import Row

__all__ = ["Layout", "as_png", "as_svg", "lay_out", "ticks"]

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 440, 64, 140, 36, 52
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8c564b", "#6a51a3")
"""Told apart by most people who see fewer colours; shapes tell them apart too."""
SHAPES = ("circle", "square", "triangle", "diamond", "cross")
GREY = "#8a8f98"
_APART = 17  # pixels between names at the right


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One point: its place in pixels, what it says when asked, and whether no other beats it."""

    x: float
    y: float
    words: str
    front: bool


@dataclass(frozen=True, kw_only=True)
class Line:
    """One method: its points by rising cost, and its name beside the last one, joined to it by a line."""

    name: str
    colour: str
    shape: str
    dashed: bool
    marks: tuple[Mark, ...]
    label: float


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Everything in pixels; ticks are (place, text)."""

    xs: tuple[tuple[float, str], ...]
    ys: tuple[tuple[float, str], ...]
    across: str
    up: str
    lines: tuple[Line, ...]
    front: tuple[tuple[float, float], ...]
    plain: Mark | None
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    right: int = WIDTH - RIGHT
    top: int = TOP
    bottom: int = HEIGHT - BOTTOM


def ticks(low: float | int, high: float | int, most: int = 7) -> list[float]:
    """Round numbers from `low` to `high` or a little beyond, at most `most` of them."""
    span = (high - low) or 1.0
    step: float = 10.0 ** math.floor(math.log10(span / most))
    step = next(step * factor for factor in (1, 2, 5, 10, 20) if span / (step * factor) <= most - 2)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def lay_out(rows: Sequence[Row]) -> Layout:
    """The plot of rows, the unpruned model first: percent of right answers by percent of its FLOPs."""
    cost = [100 * row.cost for row in rows]
    score = [100 * row.score for row in rows]
    xs, ys = ticks(min(0.0, *cost), max(cost)), ticks(min(score), max(score))
    if len(ys) == 1:
        ys = [ys[0] - 1, ys[0], ys[0] + 1]

    def at(row: Row) -> tuple[float, float]:
        x = LEFT + (100 * row.cost - xs[0]) / (xs[-1] - xs[0]) * (WIDTH - LEFT - RIGHT)
        y = HEIGHT - BOTTOM - (100 * row.score - ys[0]) / (ys[-1] - ys[0]) * (HEIGHT - TOP - BOTTOM)
        return round(x, 1), round(y, 1)

    def mark(row: Row) -> Mark:
        x, y = at(row)
        return Mark(x=x, y=y, words=_words(row), front=row.front)

    names = list(dict.fromkeys(row.method for row in rows[1:]))
    free = [name for name in names if not any(row.is_control for row in rows if row.method == name)]
    lines = []
    for name in names:
        mine = sorted((row for row in rows[1:] if row.method == name), key=lambda row: row.cost)
        control = mine[0].is_control
        place = names.index(name) if control else free.index(name)
        marks = tuple(mark(row) for row in mine)
        lines.append(
            (name, GREY if control else COLOURS[place % len(COLOURS)], SHAPES[place % len(SHAPES)], control, marks)
        )
    labels = _spread([marks[-1].y for *_, marks in lines], TOP + 8, HEIGHT - BOTTOM)
    best = sorted(at(row) for row in rows if row.front)
    return Layout(
        xs=tuple((LEFT + (x - xs[0]) / (xs[-1] - xs[0]) * (WIDTH - LEFT - RIGHT), f"{x:g}") for x in xs),
        ys=tuple((HEIGHT - BOTTOM - (y - ys[0]) / (ys[-1] - ys[0]) * (HEIGHT - TOP - BOTTOM), f"{y:g}") for y in ys),
        across="FLOPs of encoder and prefill, percent of the unpruned model's",
        up="right answers, percent",
        lines=tuple(
            Line(name=name, colour=colour, shape=shape, dashed=dashed, marks=marks, label=label)
            for (name, colour, shape, dashed, marks), label in zip(lines, labels, strict=True)
        ),
        front=tuple(best),
        plain=mark(rows[0]),
    )


def _words(row: Row) -> str:
    return (
        f"{row.name}, {row.tokens} tokens: {row.score:.1%} right, {row.cost:.1%} of the FLOPs, "
        f"{row.loyalty:.1%} as unpruned"
    )


def _spread(wanted: Sequence[float], low: float | int, high: float | int) -> list[float]:
    """Heights near those wanted, `_APART` pixels from one another, in the same order."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    found, last = [0.0] * len(wanted), low - _APART
    for i in order:
        found[i] = last = max(float(wanted[i]), last + _APART)
    beyond = max(0.0, last - high)
    ceiling = high
    for i in reversed(order):
        if beyond:
            found[i] = ceiling = min(found[i], ceiling)
            ceiling -= _APART
    return [round(float(one), 1) for one in found]


def as_svg(layout: Layout) -> str:
    """A file of its own, in the reader's light or dark colours; the report holds the same drawing."""
    return render("plot.svg", plot=layout, alone=True)


def as_png(layout: Layout) -> bytes:
    """The same on white; drawn four times as large and scaled down, which smooths it."""
    scale = 4
    made = Image.new("RGB", (layout.width * scale, layout.height * scale), "white")
    pen = ImageDraw.Draw(made)
    _axes(pen, layout, scale)
    if len(layout.front) > 1:
        pen.line([(x * scale, y * scale) for x, y in layout.front], fill="#f2b8d0", width=6 * scale, joint="curve")
    for line in layout.lines:
        pen.line([(m.x * scale, m.y * scale) for m in line.marks], fill=line.colour, width=round(1.6 * scale))
        last = line.marks[-1]
        pen.line(
            (last.x * scale, last.y * scale, (layout.right + 8) * scale, line.label * scale),
            fill="#d5d8dd",
            width=scale,
        )
        _text(pen, layout.right + 12, line.label, line.name, line.colour, scale, "lm", 13)
        for mark in line.marks:
            _shape(pen, line.shape, mark.x, mark.y, line.colour, scale, hollow=line.dashed)
    if layout.plain is not None:
        _shape(pen, "circle", layout.plain.x, layout.plain.y, "#111111", scale)
        _text(pen, layout.plain.x, layout.plain.y - 12, "unpruned", "#111111", scale, "rs", 13)
    small = made.resize((layout.width * 2, layout.height * 2), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.quantize(128, dither=Image.Dither.NONE).save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _axes(pen: ImageDraw.ImageDraw, layout: Layout, scale: int) -> None:
    left, right, top, bottom = (one * scale for one in (layout.left, layout.right, layout.top, layout.bottom))
    for x, text in layout.xs:
        pen.line((x * scale, top, x * scale, bottom), fill="#e6e8eb", width=scale)
        _text(pen, x, layout.bottom + 8, text, "#59636e", scale, "ma", 12)
    for y, text in layout.ys:
        pen.line((left, y * scale, right, y * scale), fill="#e6e8eb", width=scale)
        _text(pen, layout.left - 8, y, text, "#59636e", scale, "rm", 12)
    pen.line((left, top, left, bottom, right, bottom), fill="#59636e", width=scale)
    _text(pen, (layout.left + layout.right) / 2, layout.height - 8, layout.across, "#1b1f24", scale, "ms", 13)
    _text(pen, 8, 4, layout.up, "#1b1f24", scale, "la", 13)


def _text(
    pen: ImageDraw.ImageDraw, x: float | int, y: float | int, text: str, colour: str, scale: int, anchor: str, size: int
) -> None:
    pen.text((x * scale, y * scale), text, fill=colour, anchor=anchor, font=ImageFont.load_default(size * scale))


def _shape(
    pen: ImageDraw.ImageDraw,
    shape: str,
    x: float | int,
    y: float | int,
    colour: str,
    scale: int,
    *,
    hollow: bool = False,
) -> None:
    x, y, r = x * scale, y * scale, 4.5 * scale
    inside = "white" if hollow else colour
    if shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=inside, outline=colour, width=round(1.4 * scale))
    elif shape == "cross":
        for way in (1, -1):
            pen.line((x - r, y - way * r, x + r, y + way * r), fill=colour, width=round(2.2 * scale))
    else:
        corners = {
            "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
            "triangle": [(0, -1.15), (1.1, 0.85), (-1.1, 0.85)],
            "diamond": [(0, -1.2), (1.2, 0), (0, 1.2), (-1.2, 0)],
        }[shape]
        pen.polygon([(x + a * r, y + b * r) for a, b in corners], fill=inside, outline=colour, width=round(1.4 * scale))
