"""Scenes are sampled from a seed and drawn with integer arithmetic alone, so the same seed gives the same pixels.

`numpy.random.RandomState` is used because its streams are frozen by numpy's compatibility policy.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from tokcarve.tiny.glyphs import COLOURS, POLYGONS, RING_HOLE, SHAPES, STROKES, TURNS

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

FRAME = 336
"""Side of the full frame; a smaller scene is a window of it."""
PATCH = 14
SUB = 16
"""Sub-pixel steps per pixel in every outline."""


@dataclass(frozen=True)
class Thing:
    """One drawn object: `shape` is a name of `SHAPES` or "digit", and `digit` is its value in the latter case."""

    shape: str
    colour: str
    digit: int | None
    centre: tuple[int, int]
    radius: int
    turn: int
    stroke: int
    rgb: tuple[int, int, int]

    @property
    def half(self) -> tuple[int, int]:
        """Half width and half height of the box around the object, rotation included."""
        if self.digit is None:
            return self.radius, self.radius
        return (self.radius * 7 + 9) // 10 + 1, self.radius

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom in pixels, the last two exclusive."""
        (x, y), (w, h) = self.centre, self.half
        return x - w, y - h, x + w, y + h


@dataclass(frozen=True)
class Scene:
    """Everything that is drawn: a window of `size` pixels at `origin` of a square frame of `frame` pixels."""

    seed: int
    size: int
    origin: tuple[int, int]
    frame: int
    objects: tuple[Thing, ...]

    def place(self, thing: Thing) -> tuple[int, int]:
        """Centre of the object in the coordinates of the frame."""
        return thing.centre[0] + self.origin[0], thing.centre[1] + self.origin[1]


def _thing(rng: np.random.RandomState, shape: str, colour: str) -> Thing:
    digit = int(rng.randint(10)) if shape == "digit" else None
    radius = int(rng.randint(15, 27)) if digit is not None else int(rng.randint(12, 25))
    limit = 2 if digit is not None else len(TURNS) - 1
    if shape in ("square", "triangle"):
        limit = 3
    turn = int(rng.randint(-limit, limit + 1))
    stroke = int(rng.randint(17, 30))
    base = COLOURS[colour]
    shift = rng.randint(-14, 15, 3)
    r, g, b = (int(np.clip(base[i] + shift[i], 0, 255)) for i in range(3))
    return Thing(shape, colour, digit, (0, 0), radius, turn, stroke, (r, g, b))


def _kinds(rng: np.random.RandomState, count: int) -> list[tuple[str, str]]:
    """Shape and colour of every object; about half of the scenes repeat one shape so that counting is worth asking."""
    names = list(COLOURS)
    colours = [names[i] for i in rng.permutation(len(names))]
    repeat = SHAPES[rng.randint(len(SHAPES))] if rng.randint(100) < 50 else None
    kinds: list[tuple[str, str]] = []
    for index in range(count):
        draw_digit = rng.randint(100) < (80 if index == 0 else 14)
        shape = "digit" if draw_digit else SHAPES[rng.randint(len(SHAPES))]
        if repeat is not None and not draw_digit and rng.randint(100) < 50:
            shape = repeat
        fresh = rng.randint(100) < 70
        kinds.append((shape, colours[index % len(colours)] if fresh else names[rng.randint(len(names))]))
    return kinds


def _clear(candidate: tuple[int, int, int, int], taken: list[tuple[int, int, int, int]], gap: int = 4) -> bool:
    left, top, right, bottom = candidate
    return all(
        right + gap <= box[0] or box[2] + gap <= left or bottom + gap <= box[1] or box[3] + gap <= top for box in taken
    )


def _sample(rng: np.random.RandomState, seed: int, size: int, origin: tuple[int, int], count: int) -> Scene:
    placed: list[Thing] = []
    for shape, colour in _kinds(rng, count):
        thing = _thing(rng, shape, colour)
        w, h = thing.half
        for _ in range(40):
            centre = (int(rng.randint(w + 2, size - w - 1)), int(rng.randint(h + 2, size - h - 1)))
            moved = Thing(**{**thing.__dict__, "centre": centre})
            if _clear(moved.box, [other.box for other in placed]):
                placed.append(moved)
                break
    order = [int(i) for i in rng.permutation(len(placed))]
    return Scene(seed, size, origin, FRAME if size < FRAME else size, tuple(placed[i] for i in order))


def sample_scene(seed: int, size: int = FRAME) -> Scene:
    """The scene of this seed; sizes under the full frame give a window at a seeded patch-aligned origin."""
    rng = np.random.RandomState(seed & 0xFFFFFFFF)
    if size >= FRAME:
        return _sample(rng, seed, size, (0, 0), int(rng.randint(3, 8)))
    steps = (FRAME - size) // PATCH + 1
    origin = (int(rng.randint(steps)) * PATCH, int(rng.randint(steps)) * PATCH)
    most = max(2, min(7, size * size * 5 // (168 * 168)))
    return _sample(rng, seed, size, origin, int(rng.randint(2, most + 1)))


def _grid(thing: Thing) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Sub-pixel coordinates of the pixel centres of the box, turned back by the object's rotation."""
    w, h = thing.half
    x = (np.arange(-w, w, dtype=np.int64) * SUB + SUB // 2)[None, :]
    y = (np.arange(-h, h, dtype=np.int64) * SUB + SUB // 2)[:, None]
    cos, sin = TURNS[abs(thing.turn)]
    if thing.turn < 0:
        sin = -sin
    return (x * cos + y * sin) // 1000, (y * cos - x * sin) // 1000


def _polygon(x: npt.NDArray[np.int64], y: npt.NDArray[np.int64], points: list[tuple[int, int]]) -> Mask:
    inside = np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=np.bool_)
    for (x1, y1), (x2, y2) in zip(points, points[1:] + points[:1], strict=True):
        if y1 == y2:
            continue
        if y1 > y2:
            (x1, y1), (x2, y2) = (x2, y2), (x1, y1)
        inside ^= (y1 <= y) & (y < y2) & ((x - x1) * (y2 - y1) < (x2 - x1) * (y - y1))
    return inside


def _pen(x: npt.NDArray[np.int64], y: npt.NDArray[np.int64], points: list[tuple[int, int]], thick: int) -> Mask:
    inside = np.zeros(np.broadcast_shapes(x.shape, y.shape), dtype=np.bool_)
    for (x1, y1), (x2, y2) in zip(points[:-1], points[1:], strict=True):
        dx, dy = x2 - x1, y2 - y1
        length = dx * dx + dy * dy
        along = (x - x1) * dx + (y - y1) * dy
        across = (x - x1) * dy - (y - y1) * dx
        inside |= (along >= 0) & (along <= length) & (across * across <= thick * thick * length)
        inside |= (x - x2) * (x - x2) + (y - y2) * (y - y2) <= thick * thick
    first = points[0]
    inside |= (x - first[0]) * (x - first[0]) + (y - first[1]) * (y - first[1]) <= thick * thick
    return inside


def local_mask(thing: Thing) -> Mask:
    """Which pixels of the object's box the object covers."""
    x, y = _grid(thing)
    unit = thing.radius * SUB
    if thing.digit is not None:
        thick = unit * thing.stroke // 200
        scale = unit - thick
        points = [(px * scale // 1000, py * scale // 900) for px, py in STROKES[thing.digit]]
        return _pen(x, y, points, thick)
    if thing.shape in ("circle", "ring"):
        square = x * x + y * y
        mask = square <= unit * unit
        return mask if thing.shape == "circle" else mask & (square >= (unit * RING_HOLE // 1000) ** 2)
    return _polygon(x, y, [(px * unit // 1000, py * unit // 1000) for px, py in POLYGONS[thing.shape]])


def _background(rng: np.random.RandomState, size: int) -> npt.NDArray[np.int16]:
    base = rng.randint(95, 176) + rng.randint(-18, 19, 3)
    other = base + rng.randint(-38, 39, 1) + rng.randint(-10, 11, 3)
    kind = ("flat", "gradient", "noise", "stripes")[rng.randint(4)]
    field = np.broadcast_to(base.astype(np.int16), (size, size, 3)).copy()
    ramp = np.arange(size, dtype=np.int64)
    step = (other - base).astype(np.int64)
    if kind == "gradient":
        line = (ramp[:, None] * step[None, :] // size).astype(np.int16)
        field += line[:, None, :] if rng.randint(2) else line[None, :, :]
    elif kind == "stripes":
        width = int(rng.randint(4, 22))
        slant = int(rng.randint(-1, 2))
        bands = (((ramp[:, None] + slant * ramp[None, :]) // width) % 2).astype(np.int16)
        bands = bands if rng.randint(2) else bands.T
        field += bands[:, :, None] * (step // 2).astype(np.int16)[None, None, :]
    elif kind == "noise":
        cell = int(rng.randint(2, 9))
        count = size // cell + 1
        coarse = rng.randint(-16, 17, (count, count)).astype(np.int16)
        field += np.repeat(np.repeat(coarse, cell, 0), cell, 1)[:size, :size, None]
    return field


def _clutter(rng: np.random.RandomState, field: npt.NDArray[np.int16]) -> None:
    """Thin grey lines, coloured specks and speckled squares, all too small or too thin to be asked about."""
    size = field.shape[0]
    area = max(1, size * size // (168 * 168))
    for _ in range(int(rng.randint(0, 3 * area + 1))):
        tone, at, length = int(rng.randint(60, 210)), rng.randint(0, size, 2), int(rng.randint(15, 110))
        dx, dy = (int(v) for v in rng.randint(-8, 9, 2))
        steps = np.arange(length, dtype=np.int64)
        xs, ys = at[0] + steps * dx // 8, at[1] + steps * dy // 8
        keep = (xs >= 0) & (xs < size) & (ys >= 0) & (ys < size)
        field[ys[keep], xs[keep]] = tone
    for _ in range(int(rng.randint(0, 6 * area + 1))):
        x, y, r = int(rng.randint(size)), int(rng.randint(size)), int(rng.randint(1, 4))
        field[max(0, y - r) : y + r, max(0, x - r) : x + r] = rng.randint(0, 256, 3)
    for _ in range(int(rng.randint(0, area + 1))):
        x, y, r = int(rng.randint(size)), int(rng.randint(size)), int(rng.randint(8, 24))
        part = field[max(0, y - r) : y + r, max(0, x - r) : x + r]
        part += rng.randint(-28, 29, part.shape[:2])[:, :, None].astype(np.int16)


def render(scene: Scene) -> tuple[Pixels, npt.NDArray[np.int8]]:
    """The pixels, and for every pixel the index of the object that covers it or -1."""
    rng = np.random.RandomState((scene.seed * 2 + 1) & 0xFFFFFFFF)
    field = _background(rng, scene.size)
    _clutter(rng, field)
    owner = np.full((scene.size, scene.size), -1, dtype=np.int8)
    for index, thing in enumerate(scene.objects):
        left, top, right, bottom = thing.box
        mask = local_mask(thing)
        field[top:bottom, left:right][mask] = thing.rgb
        owner[top:bottom, left:right][mask] = index
    grain = int(rng.randint(0, 8))
    field += rng.randint(-grain, grain + 1, (scene.size, scene.size)).astype(np.int16)[:, :, None]
    return np.clip(field, 0, 255).astype(np.uint8), owner


def draw(scene: Scene) -> Image.Image:
    """The drawn RGB image."""
    return Image.fromarray(render(scene)[0])


def patch_owner(scene: Scene, patch: int = PATCH, share: float = 0.06) -> npt.NDArray[np.int64]:
    """For every patch in raster rows the object that covers the most of it, or -1 where none covers `share` of it."""
    return owner_patches(render(scene)[1], len(scene.objects), patch, share)


def owner_patches(
    owner: npt.NDArray[np.int8], count: int, patch: int = PATCH, share: float = 0.06
) -> npt.NDArray[np.int64]:
    """`patch_owner` from an owner map that is drawn already."""
    side = owner.shape[0] // patch
    cells = owner.reshape(side, patch, side, patch)
    cover = np.stack([(cells == index).sum((1, 3)) for index in range(count)])
    best = cover.argmax(0)
    return np.where(cover.max(0) >= share * patch * patch, best, -1).astype(np.int64)
