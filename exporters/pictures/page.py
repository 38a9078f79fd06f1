"""What is kept, as one HTML page that loads nothing: images are data URIs, and a policy in the page forbids the rest.

Every panel is the same picture under drawings of its own, so that a page of many panels stays small and follows the
reader's light or dark colours.
"""

import base64
import io
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader
from numpy.typing import NDArray
from PIL import Image

from tokcarve import __version__
from tokcarve.exporters.pictures.frame import OUTSIDE, Frame
from tokcarve.exporters.pictures.kept import Column, Kept, Look
from tokcarve.exporters.pictures.shades import SHADES, heat, means, outlines, owners, ranks

__all__ = ["draw_page", "gallery", "render"]

SIDE = 640
"""Most pixels of the longer side of the picture under all panels; they are shown at about half of that."""
_LOSSLESS = 250_000  # bytes up to which the picture is a PNG


def draw_page(look: Look, image: Image.Image) -> str:
    """The page of one look."""
    return render("show.html", gallery=gallery(look, image), look=look.record())


def render(template: str, **values: Any) -> str:
    """A page of this package's templates; values are escaped."""
    shades = ", ".join(f"rgb{shade}" for shade in SHADES)
    return _templates().get_template(template).render(version=__version__, shades=shades, **values)


@lru_cache(1)
def _templates() -> Environment:
    loader = FileSystemLoader(Path(__file__).resolve().parent / "templates")
    return Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)


def gallery(look: Look, image: Image.Image) -> dict[str, Any]:
    """What the template draws of a look: the picture, where the grid lies on it, and columns of panels; `data` is for
    the script that says what became of a patch."""
    side = min(SIDE, max(look.size))
    whole, frame = Frame(look, side, whole=True), Frame(look, side)
    canvas = frame.canvas(image)
    left, top, width, height = whole.shares()
    return {
        "whole": _picture(whole.canvas(image)),
        "picture": _picture(canvas),
        "ratio": whole.size[0] / whole.size[1],
        "part": frame.size[0] / frame.size[1],
        "grid": {"rows": look.grid[0], "columns": look.grid[1]},
        "seen": {"left": left, "top": top, "width": width, "height": height},
        "outside": bool((whole.labels() == OUTSIDE).any()),
        "merged": any(stage.groups for column in look.columns for stage in column.stages),
        "scored": any(stage.scores for column in look.columns for stage in column.stages),
        "prompt": look.prompt,
        "columns": [
            {
                **_head(column),
                "panels": [panel for stage in _shown(column) for panel in _panels(stage, column, frame, canvas)],
            }
            for column in look.columns
        ],
        "data": [_data(column) for column in look.columns],
    }


def _head(column: Column) -> dict[str, Any]:
    rest = {name: value for name, value in column.record().items() if name != "stages"}
    return {**rest, "left": column.last.keep}


def _shown(column: Column) -> list[Kept]:
    return [stage for stage in column.stages if stage.patches is not None] or [column.last]


def _panels(stage: Kept, column: Column, frame: Frame, canvas: NDArray[np.uint8]) -> list[dict[str, Any]]:
    place = next((i for i, one in enumerate(column.stages) if one is stage), None)
    grid, owner = frame.look.grid, owners(stage, column.total)
    found: list[dict[str, Any]] = []
    if stage.scores is not None:
        low, high = min(stage.scores.values(), default=0.0), max(stage.scores.values(), default=0.0)
        words: dict[str, Any] = {"title": f"scores at {stage.site}", "under": f"{low:.3g} to {high:.3g}"}
        found.append({**words, "stage": place, "image": _cells(heat(stage.scores, column.total), grid)})
    merged = stage.groups is not None
    dots = [divmod(patch, grid[1]) for patch, group in _merged(stage) if len(group) > 1]
    title = f"after {stage.site}" if stage.site else "no stage drops a token"
    found.append(
        {
            "title": title,
            "under": f"{stage.how}: {stage.keep} of {stage.total}",
            "stage": place,
            "image": _cells(_mixed(owner, frame, canvas), grid) if merged else None,
            "faded": _cells_path(owner < 0, grid),
            "lines": " ".join(f"M{x} {y}L{u} {v}" for x, y, u, v in outlines(owner, grid)) if merged else "",
            "dots": [(column + 0.5, row + 0.5) for row, column in dots],
        }
    )
    return found


def _merged(stage: Kept) -> list[tuple[int, tuple[int, ...]]]:
    pairs = zip(stage.patches or (), stage.groups or (), strict=bool(stage.groups))
    return [(patch, group) for patch, group in pairs if patch >= 0]


def _mixed(owner: NDArray[np.int64], frame: Frame, canvas: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The mean colour of the token that each patch belongs to, uint8 [total, 4], as opaque as on the sheet."""
    labels = frame.labels()
    mine = np.where(labels >= 0, owner[np.maximum(labels, 0)], OUTSIDE)
    colours = np.zeros((len(owner), 4), np.uint8)
    known = means(canvas, mine)
    # a patch that the picture does not show has no colour
    shown = (owner >= 0) & (owner + 1 < len(known))
    colours[shown, :3] = known[owner[shown] + 1].round().astype(np.uint8)
    colours[shown, 3] = 166
    return colours


def _data(column: Column) -> dict[str, Any]:
    """What the script reads out: by patch where it left and what it went into, by stage and patch score and rank."""
    stages = []
    for stage in column.stages:
        places = ranks(stage.scores or {})
        scores = {
            str(patch): [float(f"{score:.6g}"), round(places[patch], 4)]
            for patch, score in (stage.scores or {}).items()
        }
        stages.append({"site": stage.site, "scores": scores if stage.scores is not None else None})
    fates = column.fates()
    return {
        "name": column.name,
        "stages": stages,
        "left": [fate.left for fate in fates],
        "into": [fate.into for fate in fates],
    }


def _cells_path(wanted: NDArray[np.bool_], grid: tuple[int, int]) -> str:
    """An SVG path over the cells of a grid for which `wanted` is true, run by run."""
    parts = []
    for row, cells in enumerate(wanted.reshape(grid)):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], cells.astype(int), [0]])))
        parts += [f"M{a} {row}h{b - a}v1h{a - b}z" for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return "".join(parts)


def _cells(colours: NDArray[np.uint8], grid: tuple[int, int]) -> str:
    return _uri(Image.fromarray(colours.reshape(*grid, 4)), "PNG")


def _picture(canvas: NDArray[np.uint8]) -> str:
    made = Image.fromarray(canvas)
    lossless = _uri(made, "PNG")
    return lossless if len(lossless) <= _LOSSLESS else _uri(made, "JPEG")


def _uri(image: Image.Image, form: str) -> str:
    stream = io.BytesIO()
    image.save(stream, format=form, optimize=True, **({"quality": 88} if form == "JPEG" else {}))
    return f"data:image/{form.lower()};base64,{base64.b64encode(stream.getvalue()).decode()}"
