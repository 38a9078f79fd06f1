"""The controls: nothing, a draw, a grid."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import build, config, pictures

from tokcarve.passes import families
from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry, even_positions, lattice
from tokcarve.passes.insert import rewrite
from tokcarve.passes.methods.controls import NoReduction, Random, Uniform
from tokcarve.passes.stage import Method

SITE = "vision.layers.4"


def chosen(method: Method, geometry: Geometry, tokens: int) -> list[int]:
    """The ids that a constant choice marks."""
    (stage,) = method.stages(geometry, tokens, None)
    score = stage.rule({"tokens": torch.zeros(2, geometry.total, 4)}, {})["score"]
    assert torch.equal(score[0], score[1])
    return score[0].nonzero().flatten().tolist()


def clip_l() -> Geometry:
    made = config()
    made.vision_config.image_size = 336
    return families.geometry(made)


@pytest.mark.parametrize(
    ("count", "shape"),
    [
        (64, (8, 8)),
        (144, (12, 12)),
        (192, (12, 16)),
        (128, (8, 16)),
        (576, (24, 24)),
        (1, (1, 1)),
        (29, None),
        (25, (5, 5)),
    ],
)
def test_the_most_square_lattice(count: int, shape: tuple[int, int] | None) -> None:
    assert lattice(count, 24, 24) == shape


@given(st.integers(1, 700), st.data())
def test_even_positions_rise_and_stay_inside(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, total))
    places = even_positions(count, total)
    assert len(places) == count
    assert places == [int((i + 0.5) * total / count) for i in range(count)]
    assert all(a < b for a, b in zip(places, places[1:], strict=False))
    assert 0 <= places[0] and places[-1] < total


def test_a_uniform_grid_of_64_takes_the_middle_of_every_3_by_3() -> None:
    middles = range(1, 24, 3)
    assert chosen(Uniform(), clip_l(), 64) == [r * 24 + c for r in middles for c in middles]


def test_a_uniform_grid_of_144_takes_every_second_row_and_column() -> None:
    assert chosen(Uniform(), clip_l(), 144) == [r * 24 + c for r in range(1, 24, 2) for c in range(1, 24, 2)]


@pytest.mark.parametrize("tokens", [7, 29, 31, 575])
def test_a_count_without_a_fitting_lattice_steps_along_the_raster(tokens: int) -> None:
    assert chosen(Uniform(), clip_l(), tokens) == even_positions(tokens, 576)


def test_a_draw_is_repeatable_and_every_seed_has_its_own() -> None:
    draws = [chosen(Random(seed=seed), clip_l(), 64) for seed in range(20)]
    assert draws[3] == chosen(Random(seed=3), clip_l(), 64)
    assert len({tuple(draw) for draw in draws}) == 20
    assert all(len(set(draw)) == 64 for draw in draws)
    # 1,280 places over four quarters: 320 each, standard deviation 15
    quarters = [sum(i // 144 == q for draw in draws for i in draw) for q in range(4)]
    assert all(260 < quarter < 380 for quarter in quarters)


@pytest.mark.parametrize("method", [Random(seed=1), Uniform()])
def test_the_marked_tokens_are_the_kept_ones_for_every_image(method: Method) -> None:
    graphs = families.capture(build())
    marked = chosen(method, graphs.geometry, 9)
    with torch.no_grad():
        _, kept = rewrite(graphs, method.stages(graphs.geometry, 9, None)).graphs.vision(pictures(3))
    assert kept[SITE].tolist() == [marked] * 3


def test_no_reduction_refuses_a_reduction() -> None:
    assert NoReduction().stages(clip_l(), 576, None) == ()
    with pytest.raises(MethodError, match="none keeps all 576 tokens; 64 were asked for"):
        NoReduction().stages(clip_l(), 64, None)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(MethodError, match="seed=-1 of random is negative; choose 0 or above"):
        Random(seed=-1).stages(clip_l(), 64, None)
