"""What other token counts and other batches would cost, on graphs that were made for them (scratch.py).

`sweep_tokens` looks for the latency staircase: matrix products are computed in tiles, so that a few tokens more cost
nothing up to the edge of a tile, and a whole tile's time behind it. Every count is measured in turn with the count that
was wished for, so that what is told, milliseconds over the wish's, does not move with the machine.

`sweep_batches` measures stages and answers of both sides for every batch, as `profile` does for one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from tokcarve.exporters.device.bench import Bench, Tick
from tokcarve.exporters.device.memory import Memory, fit
from tokcarve.exporters.device.pipeline import Pipeline
from tokcarve.exporters.device.rounds import Effort, Samples, Way, ratios, settled, take_rounds, timed
from tokcarve.exporters.device.scratch import batch_face, tokens_face
from tokcarve.exporters.device.session import Face
from tokcarve.exporters.device.stages import answer_name
from tokcarve.exporters.device.timing import Distribution, distribution
from tokcarve.passes.errors import ExportError
from tokcarve.passes.flops import count_flops, rows_of

__all__ = ["Batch", "Point", "Staircase", "counts_around", "others_of", "sweep_batches", "sweep_tokens"]

_TILE, _BELOW, _ABOVE = 8, 1, (1, 2, 3, 4, 6, 8)
_STEEP = 2.0
"""A step costs this many times what its FLOPs would, and more than noise."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """A prefill of the whole language model over `tokens` visual tokens: milliseconds, and those of the wished count
    over these, in the same rounds; `computes` is how many times the FLOPs of the wish it has."""

    tokens: int
    rows: int
    milliseconds: Distribution
    faster: Distribution
    computes: float

    @property
    def costs(self) -> float:
        """Its time over that of the wish."""
        return 1 / self.faster.p50

    def apart(self, other: "Point") -> bool:
        """Whether the intervals of both are known and have no value in common."""
        mine, theirs = self.faster.interval, other.faster.interval
        return mine is not None and theirs is not None and not mine.meets(theirs)


@dataclass(frozen=True, kw_only=True)
class Staircase:
    """Points with rising counts, the wish among them; `tolerance` is what counts as the same time."""

    wish: int
    points: tuple[Point, ...]
    tolerance: float

    @property
    def steps(self) -> tuple[int, ...]:
        """The counts that are surely and much slower than the one before them: behind the edge of a tile."""
        return tuple(
            after.tokens
            for before, after in zip(self.points, self.points[1:], strict=False)
            if (rise := after.costs / before.costs - 1) > self.tolerance
            and rise > _STEEP * (after.computes / before.computes - 1)
            and before.apart(after)
        )

    @property
    def suggested(self) -> int:
        """The most tokens, at or above the wish, that take no longer than it, as far as the medians tell."""
        free = [one.tokens for one in self.points if one.tokens >= self.wish and one.costs <= 1 + self.tolerance]
        return max(free, default=self.wish)

    def record(self) -> dict[str, Any]:
        """This as JSON."""
        points = [
            {
                "tokens": one.tokens,
                "rows": one.rows,
                "prefill": one.milliseconds.record(),
                "over_wish": one.costs,
                "tight": settled(one.faster, self.tolerance),
                "flops_over_wish": one.computes,
                "step": one.tokens in self.steps,
            }
            for one in self.points
        ]
        return {"wish": self.wish, "suggested": self.suggested, "tolerance": self.tolerance, "points": points}


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One batch: milliseconds of first tokens and of answers of `new` tokens, and the rounds' ratios of both."""

    batch: int
    new: int
    first: tuple[Distribution, Distribution, Distribution]
    whole: tuple[Distribution, Distribution, Distribution]

    def record(self) -> dict[str, Any]:
        """This as JSON; throughput is images, and new tokens of all of them, per second."""
        sides = ("pruned", "unpruned")
        return {
            "batch": self.batch,
            "new_tokens": self.new,
            "first_token_ms": {side: self.first[place].p50 for place, side in enumerate(sides)},
            "end_to_end_ms": {side: self.whole[place].p50 for place, side in enumerate(sides)},
            "images_per_second": {side: self.images(place) for place, side in enumerate(sides)},
            "tokens_per_second": {side: self.new * self.images(place) for place, side in enumerate(sides)},
            "first_token_speedup": self.first[2].p50,
            "end_to_end_speedup": self.whole[2].p50,
        }

    def images(self, side: int) -> float:
        """Images answered per second, pruned (0) or not (1)."""
        return 1000 * self.batch / self.whole[side].p50


def counts_around(wish: int, total: int) -> tuple[int, ...]:
    """The counts to look at unless told: the wish, one tile less, and up to eight tiles more, of `total` tokens.

    ExportError where all tokens enter the language model, for then there is nothing between the wish and the whole.
    """
    if wish >= total:
        raise ExportError(
            f"all {total} visual tokens of this artifact enter the language model, which drops them later; name the "
            "counts to sweep, as --sweep-tokens 64,128,192"
        )
    places = [wish - _BELOW * _TILE, wish, *(wish + tiles * _TILE for tiles in _ABOVE)]
    return tuple(count for count in places if 1 <= count <= total)


def others_of(counts: Sequence[int], wish: int) -> list[int]:
    """What to measure beside the wish, rising; ExportError where there is nothing."""
    others = [count for count in sorted(set(counts)) if count != wish]
    if not others:
        raise ExportError(
            f"there is nothing to compare {wish} tokens with; name other counts, as {wish},{wish + _TILE}"
        )
    return others


def sweep_tokens(face: Face, wish: int, counts: Sequence[int], effort: Effort, tick: Tick) -> Staircase:
    """Measures the prefill of the whole model at `wish` tokens and at every one of `counts`, in pairs, which share the
    time of `effort`; raises ExportError where there is no count but the wish."""
    others = others_of(counts, wish)
    each = replace(effort, seconds=effort.seconds / len(others))
    points = list[Point]()
    for done, count in enumerate(others):
        taken = take_rounds([(_prefill(face, count), _prefill(face, wish))], each)
        pair = taken.samples["prefill"]
        if not points:
            points.append(_point(face, wish, wish, (pair[1], pair[1])))
        points.append(_point(face, wish, count, pair))
        tick("tokens", done + 1, len(others))
    return Staircase(wish=wish, points=tuple(sorted(points, key=lambda one: one.tokens)), tolerance=effort.tolerance)


def sweep_batches(
    face: Face, batches: Sequence[int], new: int, effort: Effort, memory: tuple[Memory, Memory], tick: Tick
) -> tuple[Batch, ...]:
    """Measures answers of one and of `new` tokens for every batch; `memory` is what the exported batch took."""
    made = []
    for batch in sorted(set(batches)):
        bench = Bench(
            batch_face(face, batch),
            effort=effort,
            answers=(1, new),
            together=fit(memory, max(1.0, batch / face.record.batch)),
        )
        bench.run(partial(_named, tick, batch))
        first, whole = (bench.samples[answer_name(count)] for count in (1, new))
        made.append(Batch(batch=batch, new=new, first=_three(first), whole=_three(whole)))
    return tuple(made)


def _named(tick: Tick, batch: int, what: str, done: int, total: int) -> None:
    tick(f"batch {batch}: {what}", done, total)


def _three(pair: Samples) -> tuple[Distribution, Distribution, Distribution]:
    return distribution(pair[0]), distribution(pair[1]), distribution(ratios(pair))


def _prefill(face: Face, count: int) -> Way:
    """A prefill over made-up rows; what they hold costs nothing."""
    pipeline = Pipeline(tokens_face(face, count), baseline=True)
    graph = pipeline.graph("prefill")
    rows = face.record.max_text + count
    feeds = {
        "inputs_embeds": np.ones(graph.shapes["inputs_embeds"], graph.types["inputs_embeds"]),
        "position_ids": np.tile(np.arange(rows), (face.record.batch, 1)),
        "visual_start": np.ones(face.record.batch, np.int64),
    }
    lengths = np.full(face.record.batch, rows, np.int64)
    return timed("prefill", lambda _: pipeline.prefill(feeds, lengths))


def _point(face: Face, wish: int, count: int, pair: Samples) -> Point:
    text, geometry = face.record.max_text, face.record.geometry
    whole = rows_of(geometry, (), text)
    flops = [
        count_flops(geometry, replace(whole, text=(text + tokens,) * geometry.text.layers)).prefill
        for tokens in (count, wish)
    ]
    return Point(
        tokens=count,
        rows=text + count,
        milliseconds=distribution(pair[0]),
        faster=distribution(ratios(pair)),
        computes=flops[0] / flops[1],
    )
