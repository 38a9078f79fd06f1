"""Which layers of a language model a method cuts behind, and how many tokens it leaves there: integers, once."""

from collections.abc import Iterable, Iterator, Sequence

from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry

__all__ = ["after_layer", "dropping", "geometric", "layers_at", "on_lines"]

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
    chosen = tuple(given) if given is not None else _scaled(geometry.text.layers, published)
    if not chosen:
        raise MethodError("layers=() names no layer to drop behind; name at least one, or none for the published ones")
    if any(later <= earlier for earlier, later in zip(chosen, chosen[1:], strict=False)):
        raise MethodError(
            f"the method drops behind layers {', '.join(map(str, chosen))} of {geometry.text.layers}, and each must "
            "lie behind the one before; choose rising layers with --param"
        )
    return tuple(after_layer(geometry, layer) for layer in chosen)


def _scaled(layers: int, published: Sequence[int]) -> tuple[int, ...]:
    found = list[int]()
    for layer in published:
        # before a cut behind layer l of 32 run l + 1 layers; here the same share, and one more than before the last cut
        found.append(max(round((layer + 1) * layers / DEPTH) - 1, found[-1] + 1 if found else 0))
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


def on_lines(points: Sequence[tuple[int, Sequence[int]]], at: float) -> list[float]:
    """The values at `at` on straight lines between `points` (place, values), whose places rise; at one, its own."""
    lower, upper = next(pair for pair in zip(points, points[1:], strict=False) if at <= pair[1][0])
    share = (at - lower[0]) / (upper[0] - lower[0])
    return [low + (high - low) * share for low, high in zip(lower[1], upper[1], strict=True)]
