"""What is kept, as one PNG: the image, a row of panels per method, a legend, and the table of overlaps."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from tokcarve.exporters.pictures.frame import OUTSIDE, Frame
from tokcarve.exporters.pictures.kept import Column, Kept, Look, overlap
from tokcarve.exporters.pictures.shades import SHADES, heat, means, owners

__all__ = ["draw_sheet", "heat_panel", "kept_panel"]

Pixels = NDArray[np.uint8]

SIDE, GAP, LINE, TEXT, MOST = 288, 14, 22, 16, 6
"""Pixels: of a panel, between panels, of a line of text, of its letters; and panels in a row."""
WIDE = 900
"""Pixels that a title may take."""
FADE = 0.09
"""What is left of the colour of a patch that was dropped."""
INK, PALE, HATCH = (25, 25, 25), (110, 110, 110), (176, 176, 184)


@dataclass(frozen=True)
class _Panel:
    picture: Pixels
    words: tuple[str, ...]


def draw_sheet(look: Look, image: Image.Image, *, last_only: bool = False) -> bytes:
    """The PNG file; with `last_only` one panel per method, of what is left at the end, and no legend or table."""
    whole, frame = Frame(look, SIDE, whole=True), Frame(look, SIDE)
    canvas = frame.canvas(image)
    first = _Panel(_outside(whole.canvas(image), whole), (look.prompt or "the image",))
    if last_only:
        panels = [first, *(_last(column, canvas, frame) for column in look.columns)]
        return _png(_stack([_row(panels[i : i + MOST], None) for i in range(0, len(panels), MOST)]))
    blocks = [_beside(_row([first], None), _legend(look, whole))]
    for column in look.columns:
        panels = _panels(column, canvas, frame)
        parts = [panels[i : i + MOST] for i in range(0, len(panels), MOST)]
        blocks += [_row(part, _title(column) if not i else None) for i, part in enumerate(parts)]
    if len(look.columns) > 1:
        blocks.append(_table(look.columns))
    return _png(_stack(blocks))


def kept_panel(stage: Kept, canvas: Pixels, frame: Frame, total: int) -> Pixels:
    """What a stage keeps, uint8 [height, width, 3]: dropped patches are faded; a merged token's patches have one colour
    and one outline, with a dot on the patch at whose place it stands."""
    labels, owner = frame.labels(), owners(stage, total)
    mine = np.where(labels >= 0, owner[np.maximum(labels, 0)], OUTSIDE)
    pixels = canvas.astype(float)
    if stage.groups is not None:
        pixels = _mixed(pixels, mine)
    faded = np.where((mine >= 0)[..., None], pixels, 255 - FADE * (255 - pixels))
    made = Image.fromarray(faded.clip(0, 255).astype(np.uint8))
    if stage.groups is not None:
        _mark(made, stage, mine, labels)
    return np.asarray(made)


def heat_panel(stage: Kept, canvas: Pixels, frame: Frame, total: int) -> Pixels:
    """Scores of the patches that a stage chose among, shaded by rank, uint8 [height, width, 3]; others are faded."""
    labels = frame.labels()
    shades = heat(stage.scores or {}, total).astype(float)[np.maximum(labels, 0)]
    grey = canvas.astype(float).mean(axis=2, keepdims=True)
    scored = (labels >= 0) & (shades[..., 3] > 0)
    mixed = np.where(scored[..., None], 0.8 * shades[..., :3] + 0.2 * grey, 255 - FADE * (255 - canvas.astype(float)))
    made: Pixels = mixed.clip(0, 255).astype(np.uint8)
    return made


def _mixed(pixels: NDArray[np.float64], mine: NDArray[np.int64]) -> NDArray[np.float64]:
    """Patches of one token in their mean colour, with some of the image left to recognise it by."""
    mixed: NDArray[np.float64] = 0.65 * means(pixels, mine)[mine + 1] + 0.35 * pixels
    return mixed


def _mark(made: Image.Image, stage: Kept, mine: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
    edge = np.zeros(mine.shape, bool)
    edge[:, 1:] |= mine[:, 1:] != mine[:, :-1]
    edge[1:] |= mine[1:] != mine[:-1]
    made.paste(INK, mask=Image.fromarray(edge & (labels >= 0)))
    pen = ImageDraw.Draw(made)
    for patch, group in zip(stage.patches or (), stage.groups or (), strict=True):
        ys, xs = np.nonzero(labels == patch) if len(group) > 1 and patch >= 0 else ((), ())
        if len(xs):
            x, y = float(np.mean(xs)), float(np.mean(ys))
            pen.ellipse((x - 2.5, y - 2.5, x + 2.5, y + 2.5), fill="white", outline=INK)


def _outside(pixels: Pixels, frame: Frame) -> Pixels:
    """Hatched where the model sees nothing of the image."""
    labels = frame.labels()
    ys, xs = np.indices(labels.shape)
    hatched = (labels == OUTSIDE) & ((xs + ys) % 8 < 3)
    return np.where(hatched[..., None], np.array(HATCH, np.uint8), pixels)


def _title(column: Column) -> str:
    answer = "" if column.answer is None else f"   answer: {column.answer or '(nothing)'}"
    return f"{column.name}, {column.tokens} of {column.total} visual tokens ({column.runtime}){answer}"


def _last(column: Column, canvas: Pixels, frame: Frame) -> _Panel:
    stage = column.last
    answer = "" if column.answer is None else f": {column.answer or '(nothing)'}"
    return _Panel(
        kept_panel(stage, canvas, frame, column.total), (f"{column.name}, {stage.keep} of {column.total}{answer}",)
    )


def _panels(column: Column, canvas: Pixels, frame: Frame) -> list[_Panel]:
    found = []
    for stage in column.stages:
        if stage.scores is not None:
            low, high = min(stage.scores.values(), default=0.0), max(stage.scores.values(), default=0.0)
            words = (f"scores at {stage.site}", f"{low:.3g} to {high:.3g}")
            found.append(_Panel(heat_panel(stage, canvas, frame, column.total), words))
        if stage.patches is not None:
            words = (f"after {stage.site}", f"{stage.how}: {stage.keep} of {stage.total}")
            found.append(_Panel(kept_panel(stage, canvas, frame, column.total), words))
    return found or [_Panel(kept_panel(column.last, canvas, frame, column.total), ("no stage drops a token",))]


def _font(size: int = TEXT) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    return ImageFont.load_default(size)


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of `text` that fit `width` pixels; a word that is longer than a line stands alone."""
    lines, font = [""], _font()
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _row(panels: Sequence[_Panel], title: str | None) -> Image.Image:
    """Panels beside one another, their words below, and a title above."""
    height, width = (max(panel.picture.shape[i] for panel in panels) for i in range(2))
    captions = [[line for words in panel.words for line in _wrapped(words, width)] for panel in panels]
    across = len(panels) * (width + GAP) - GAP
    above = _wrapped(title, max(across, WIDE)) if title else []
    head = len(above) * LINE + (6 if above else 0)
    total = head + height + 6 + max(map(len, captions)) * LINE
    longest = max([across, *(int(_font(TEXT + 1).getlength(line)) + 2 for line in above)])
    made = Image.new("RGB", (longest, total), "white")
    pen = ImageDraw.Draw(made)
    for i, line in enumerate(above):
        pen.text((0, i * LINE), line, fill=INK, font=_font(TEXT + 1), stroke_width=0.3)
    for place, (panel, lines) in enumerate(zip(panels, captions, strict=True)):
        left = place * (width + GAP)
        made.paste(Image.fromarray(panel.picture), (left, head))
        tall, wide = panel.picture.shape[:2]
        pen.rectangle((left, head, left + wide - 1, head + tall - 1), outline=HATCH)
        for i, line in enumerate(lines):
            pen.text((left, head + height + 6 + i * LINE), line, fill=PALE if i else INK, font=_font())
    return made


def _legend(look: Look, whole: Frame) -> Image.Image:
    """What the colours mean, as far as they occur."""
    stages = [stage for column in look.columns for stage in column.stages]
    lines: list[tuple[str, str]] = [("kept", "kept: in its own colours"), ("dropped", "dropped: faded")]
    if any(stage.groups for stage in stages):
        lines.append(("merged", "merged: one outline and one colour per token, a dot where it stands"))
    if any(stage.scores for stage in stages):
        lines.append(("scores", "scores by rank, from the lowest to the highest"))
    if (whole.labels() == OUTSIDE).any():
        lines.append(("outside", "not seen by the model: cropped away, or padding"))
    notes = dict.fromkeys(f"{column.name}: {note}." for column in look.columns for note in column.notes)
    wrapped = [line for note in notes for line in _wrapped(note, 560)]
    made = Image.new("RGB", (640, (len(lines) + 1) * (LINE + 8) + len(wrapped) * LINE), "white")
    pen = ImageDraw.Draw(made)
    for i, (kind, words) in enumerate(lines):
        _swatch(made, pen, kind, i * (LINE + 8))
        pen.text((76, i * (LINE + 8) + 1), words, fill=INK, font=_font())
    for i, line in enumerate(wrapped):
        pen.text((0, len(lines) * (LINE + 8) + 12 + i * LINE), line, fill=PALE, font=_font())
    return made


def _swatch(made: Image.Image, pen: ImageDraw.ImageDraw, kind: str, top: int) -> None:
    box = (0, top, 63, top + LINE - 1)
    blue = (66, 120, 190)
    if kind == "scores":
        shades = np.array(SHADES, float)
        at = np.linspace(0, len(SHADES) - 1, 64)
        ramp = np.stack([np.interp(at, np.arange(len(SHADES)), shades[:, i]) for i in range(3)], axis=1)
        made.paste(Image.fromarray(np.broadcast_to(ramp.astype(np.uint8), (LINE, 64, 3)).copy()), box[:2])
    elif kind == "outside":
        ys, xs = np.indices((LINE, 64))
        hatched = np.where(((xs + ys) % 8 < 3)[..., None], np.array(HATCH), 255).astype(np.uint8)
        made.paste(Image.fromarray(hatched), box[:2])
    else:
        faded = tuple(round(255 - FADE * (255 - channel)) for channel in blue)
        pen.rectangle(box, fill=faded if kind == "dropped" else blue)
        if kind == "merged":
            pen.line((31, top, 31, top + LINE), fill=INK)
            for x in (15, 47):
                pen.ellipse((x - 2.5, top + 8, x + 2.5, top + 13), fill="white", outline=INK)
    pen.rectangle(box, outline=HATCH)


def _table(columns: Sequence[Column]) -> Image.Image:
    """Jaccard overlap of what is left at the end, method by method."""
    found = overlap(columns)
    names, rows = found["names"], found["last"]
    font = _font()
    first = int(max(font.getlength(name) for name in names)) + 24
    wide = max(64, int(max(font.getlength(name) for name in names)) + 18)
    made = Image.new("RGB", (max(first + wide * len(names), 420), (len(names) + 2) * LINE + 10), "white")
    pen = ImageDraw.Draw(made)
    pen.text((0, 0), "overlap of what is left at the end (Jaccard)", fill=INK, font=_font(TEXT + 1), stroke_width=0.3)
    for i, name in enumerate(names):
        pen.text((first + (i + 1) * wide - 18, LINE + 6), name, fill=PALE, font=font, anchor="ra")
        pen.text((0, (i + 2) * LINE + 8), name, fill=INK, font=font)
        for j, value in enumerate(rows[i]):
            at = (first + (j + 1) * wide - 18, (i + 2) * LINE + 8)
            pen.text(at, f"{value:.2f}", fill=PALE if i == j else INK, font=font, anchor="ra")
    return made


def _beside(one: Image.Image, other: Image.Image) -> Image.Image:
    made = Image.new("RGB", (one.width + 2 * GAP + other.width, max(one.height, other.height)), "white")
    made.paste(one, (0, 0))
    made.paste(other, (one.width + 2 * GAP, 0))
    return made


def _stack(blocks: Sequence[Image.Image]) -> Image.Image:
    width, height = max(block.width for block in blocks), sum(block.height + GAP for block in blocks) - GAP
    made = Image.new("RGB", (width + 2 * GAP, height + 2 * GAP), "white")
    top = GAP
    for block in blocks:
        made.paste(block, (GAP, top))
        top += block.height + GAP
    return made


def _png(made: Image.Image) -> bytes:
    stream = io.BytesIO()
    made.save(stream, format="PNG", optimize=True)
    return stream.getvalue()
