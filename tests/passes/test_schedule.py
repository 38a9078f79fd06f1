"""Layers and counts: published layers scaled, counts that fall by a ratio, cuts that drop nothing, straight lines."""

from dataclasses import replace

import pytest
from models import config

from tokcarve.passes import families
from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.schedule import after_layer, dropping, geometric, layers_at, on_lines, tower_layers_at


def deep(layers: int) -> Geometry:
    geometry = families.geometry(config())
    return replace(geometry, text=replace(geometry.text, layers=layers))


@pytest.mark.parametrize(
    ("layers", "published", "found"),
    [
        (32, (2, 6, 15), (2, 6, 15)),
        (28, (7, 15, 23), (6, 13, 20)),
        (40, (2, 6, 15), (3, 8, 19)),
        (8, (2, 6, 15), (0, 1, 3)),
        (8, (0, 1, 2), (0, 1, 2)),
    ],
)
def test_published_layers_scale(layers: int, published: tuple[int, ...], found: tuple[int, ...]) -> None:
    assert layers_at(deep(layers), None, published) == tuple(f"language.layers.{layer}" for layer in found)


def test_named_layers_are_taken_as_they_are() -> None:
    assert layers_at(deep(8), (0, 6), (2, 6, 15)) == ("language.layers.0", "language.layers.6")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((), "names no layer to drop behind"),
        ((3, 3), "each must lie behind the one before"),
        ((4, 3), "each must lie behind the one before"),
        ((3, 7), r"8 layers.*behind layers 0\.\.6.*behind layer 7"),
    ],
)
def test_layers_that_cannot_be(layers: tuple[int, ...], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        layers_at(deep(8), layers, (2, 6, 15))
    with pytest.raises(MethodError, match="behind layer -1"):
        after_layer(deep(8), -1)


def used(layers: int) -> Geometry:
    geometry = families.geometry(config())
    return replace(geometry, vision=replace(geometry.vision, layers_used=layers))


@pytest.mark.parametrize(
    ("layers", "found"), [(12, (3, 6, 9)), (23, (7, 12, 18)), (24, (7, 13, 19)), (5, (1, 2, 3)), (3, (0, 1, 2))]
)
def test_published_layers_scale_to_those_a_tower_uses(layers: int, found: tuple[int, ...]) -> None:
    sites = tower_layers_at(used(layers), None, (3, 6, 9), 12)
    assert sites == tuple(f"vision.layers.{layer}" for layer in found)


def test_the_last_used_layer_of_a_tower_can_be_named() -> None:
    assert tower_layers_at(used(5), (0, 4), (3, 6, 9), 12) == ("vision.layers.0", "vision.layers.4")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((), "names no layer to drop behind"),
        ((2, 2, 3), "behind layers 2, 2, 3 of 5, and each must lie behind the one before"),
        ((1, 5), "uses 5 layers, so tokens can be dropped behind layers 0..4, and the method drops behind layer 5"),
        ((-1, 2), "drops behind layer -1"),
    ],
)
def test_layers_that_a_tower_does_not_use(layers: tuple[int, ...], message: str) -> None:
    with pytest.raises(MethodError, match=message):
        tower_layers_at(used(5), layers, (3, 6, 9), 12)


def test_a_tower_too_short_for_the_published_layers() -> None:
    with pytest.raises(MethodError, match=r"dropped behind layers 0\.\.1, and the method drops behind layer 2"):
        tower_layers_at(used(2), None, (3, 6, 9), 12)


@pytest.mark.parametrize(
    ("total", "tokens", "steps", "ratio", "counts"),
    [
        (576, 72, 3, None, (288, 144, 72)),
        (576, 64, 1, None, (64,)),
        (576, 54, 3, 0.4556, (262, 120, 54)),
        (576, 200, 3, 0.5, (288, 200, 200)),
        (64, 63, 3, None, (64, 63, 63)),
    ],
)
def test_counts_that_fall_by_a_ratio(
    total: int, tokens: int, steps: int, ratio: float | None, counts: tuple[int, ...]
) -> None:
    assert geometric(total, tokens, steps, ratio) == counts


def test_cuts_that_drop_nothing_are_left_out() -> None:
    assert list(dropping(64, [("a", 64), ("b", 40), ("c", 40), ("d", 8)])) == [("b", 40), ("d", 8)]


def test_values_on_straight_lines() -> None:
    points = [(0, (0, 0)), (10, (20, 5)), (20, (10, 25))]
    assert [on_lines(points, at) for at in (0.0, 5.0, 10.0, 15.0, 20.0)] == [
        [0.0, 0.0],
        [10.0, 2.5],
        [20.0, 5.0],
        [15.0, 15.0],
        [10.0, 25.0],
    ]
