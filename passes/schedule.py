"""Which layers of a language model a method cuts behind, and how many tokens it leaves there: integers, once."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry

__all__ = [
    "after_layer",
    "apportion",
    "divided_as",
    "dropping",
    "geometric",
    "layers_at",
    "named",
    "on_lines",
    "tower_layers_at",
]

REACHES = (2, 8, 64)
"""Tokens around their exact share within which counts are looked for, one after the other."""

DEPTH = 32
"""Layers of the language model for which the literature names its layers."""


def after_layer(geometry: Geometry, layer: int) -> str:
    """The site behind language layer `layer` (0-based); MethodError for one that has no layer before or behind it."""
    layers = geometry.text.layers
    if not 0 <= layer < layers - 1:
        raise MethodError(
            f"this language model has {layers} layers, so tokens can be dropped behind layers 0..{layers - 2}, "
            f"and the method drops behind layer {layer}; choose other layers with --param"
        )
    return f"language.layers.{layer}"


def layers_at(geometry: Geometry, given: Sequence[int] | None, published: Sequence[int]) -> tuple[str, ...]:
    """The sites behind the layers `given`, or the `published` ones of a model 32 layers deep scaled to this one.

    MethodError for layers that do not rise, that the model does not have, or too few of them.
    """
    chosen = _chosen(given, published, geometry.text.layers, DEPTH)
    return tuple(after_layer(geometry, layer) for layer in chosen)


def tower_layers_at(
    geometry: Geometry, given: Sequence[int] | None, published: Sequence[int], depth: int
) -> tuple[str, ...]:
    """The sites behind the vision layers `given`, or the `published` ones of a tower of `depth` layers scaled to those
    that are used here; errors as for `layers_at`."""
    used = geometry.vision.layers_used
    chosen = _chosen(given, published, used, depth)
    outside = next((layer for layer in chosen if not 0 <= layer < used), None)
    if outside is not None:
        raise MethodError(
            f"this vision tower uses {used} layers, so tokens can be dropped behind layers 0..{used - 1}, and the "
            f"method drops behind layer {outside}; choose other layers with --param"
        )
    return tuple(f"vision.layers.{layer}" for layer in chosen)


def _chosen(given: Sequence[int] | None, published: Sequence[int], layers: int, depth: int) -> tuple[int, ...]:
    """The layers `given`, or the `published` ones scaled from `depth` layers to `layers`; MethodError unless they
    rise."""
    chosen = tuple(given) if given is not None else _scaled(layers, published, depth)
    if not chosen:
        raise MethodError("layers=() names no layer to drop behind; name at least one, or none for the published ones")
    if any(later <= earlier for earlier, later in zip(chosen, chosen[1:], strict=False)):
        raise MethodError(
            f"the method drops behind layers {', '.join(map(str, chosen))} of {layers}, and each must "
            "lie behind the one before; choose rising layers with --param"
        )
    return chosen


def _scaled(layers: int, published: Sequence[int], depth: int) -> tuple[int, ...]:
    found = list[int]()
    for layer in published:
        # before a cut behind layer l of `depth` run l + 1; here the same share, and one more than before the last cut
        found.append(max(round((layer + 1) * layers / depth) - 1, found[-1] + 1 if found else 0))
    return tuple(found)


def geometric(total: int, tokens: int, steps: int, ratio: float | None = None) -> tuple[int, ...]:
    """`steps` counts that fall by one ratio from `total` to exactly `tokens`; `ratio` sets it for all but the last."""
    share = (tokens / total) ** (1 / steps) if ratio is None else ratio
    counts = [max(tokens, round(total * share ** (step + 1))) for step in range(steps - 1)]
    return (*counts, tokens)


def dropping(total: int, plan: Iterable[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """The pairs (site, count) of `plan` behind which fewer tokens are left than before, `total` at first."""
    for site, count in plan:
        if count < total:
            yield site, count
            total = count


def named(counts: Sequence[int], total: int, tokens: int, cuts: int, of: str) -> tuple[int, ...]:
    """`counts` that were named behind all of `cuts` but the last, and `tokens` behind that; MethodError for a method
    `of` which they do not fit."""
    left = (total, *counts, tokens)
    if len(left) != cuts + 1 or any(after > before for before, after in zip(left, left[1:], strict=False)):
        raise MethodError(f"counts={tuple(counts)} of {of} must be {cuts - 1} that never rise from {total} to {tokens}")
    return left[1:]


def on_lines(points: Sequence[tuple[int, Sequence[int]]], at: float) -> list[float]:
    """The values at `at` on straight lines between `points` (place, values), whose places rise; at one, its own."""
    lower, upper = next(pair for pair in zip(points, points[1:], strict=False) if at <= pair[1][0])
    share = (at - lower[0]) / (upper[0] - lower[0])
    return [low + (high - low) * share for low, high in zip(lower[1], upper[1], strict=True)]


def apportion(
    weights: Sequence[int | float], total: int, *, least: int, most: int, lengths: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Counts in `least`..`most` that never rise, as nearly proportional to `weights` (> 0) as whole tokens allow.

    Each stands for `lengths` layers (1 unless told), and over all layers they sum to exactly `total`; of all such
    counts these are the nearest by squares, weighed by layers. MethodError where there are none.
    """
    lengths = [1] * len(weights) if lengths is None else list(lengths)
    if least * sum(lengths) <= total <= most * sum(lengths) and total % math.gcd(*lengths) == 0:
        ideal = _scaled_to([min(weights[: i + 1]) for i in range(len(weights))], total, least, most, lengths)
        for reach in REACHES:
            ranges = [range(max(least, int(one) - reach), min(most, int(one) + reach) + 1) for one in ideal]
            found = _nearest(ideal, total, ranges, lengths)
            if found is not None:
                return found
    raise MethodError(f"no counts of {least}..{most} sum to {total} over {lengths} layers; ask for another count")


def _nearest(
    ideal: Sequence[float], total: int, ranges: Sequence[range], lengths: Sequence[int]
) -> tuple[int, ...] | None:
    """The counts out of `ranges`, never rising, nearest to `ideal`, that sum to `total` over all layers."""
    behind = [0]  # the least that the counts behind each place come to, the first place last
    for span, length in zip(ranges[:0:-1], lengths[:0:-1], strict=True):
        behind.append(behind[-1] + length * span[0])
    # how far off counts are, what they sum to, and the counts themselves, negated: a tie goes to more at the first
    ways: list[tuple[float, int, tuple[int, ...]]] = [(0.0, 0, ())]
    for one, span, length in zip(ideal, ranges, lengths, strict=True):
        room = total - behind.pop()
        best: dict[tuple[int, int], tuple[float, int, tuple[int, ...]]] = {}
        for far, spent, counts in ways:
            for count in span:
                if (counts and count > -counts[-1]) or spent + length * count > room:
                    break
                way = (far + length * (count - one) ** 2, spent + length * count, (*counts, -count))
                state = count, way[1]
                best[state] = min(way, best.get(state, way))
        ways = list(best.values())
    exact = [way for way in ways if way[1] == total]
    return tuple(-count for count in min(exact)[2]) if exact else None


def _scaled_to(
    weights: Sequence[int | float], total: int, least: int, most: int, lengths: Sequence[int]
) -> list[float]:
    """`weights` times one number, held within bounds, so that they sum to `total` over all layers."""

    def held(scale: float) -> list[float]:
        return [float(min(max(weight * scale, least), most)) for weight in weights]

    low, high = 0.0, most / min(weights)
    for _ in range(100):
        middle = (low + high) / 2
        reached = math.fsum(n * one for n, one in zip(lengths, held(middle), strict=True))
        low, high = (middle, high) if reached <= total else (low, middle)
    return held(low)


def divided_as(wanted: Mapping[str, float], planned: Mapping[str, int], total: int) -> dict[str, int]:
    """Counts behind the sites of `planned`, with its mean over layers and its last count; those before the last are
    as nearly proportional to `wanted` as `apportion` makes them."""
    *free, last = planned
    if len(free) < 2:
        return dict(planned)
    ends = [int(site.rpartition(".")[2]) for site in planned]
    spans = [later - one for one, later in zip(ends, ends[1:], strict=False)]
    whole = sum(span * planned[site] for span, site in zip(spans, free, strict=True))
    weights = [max(1e-3, wanted.get(site, 0.0)) for site in free]
    found = apportion(weights, whole, least=planned[last], most=total, lengths=spans)
    return dict(zip(planned, (*found, planned[last]), strict=True))
