"""Pooling: its matrix against torch's own pooling, its sums, its centres."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import TOTAL, build, config, pictures
from torch import Tensor
from torch.nn import functional

from tokcarve.passes import families
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.insert import rewrite
from tokcarve.passes.methods.pooling import Pooling, window_weights


def clip_l() -> Geometry:
    made = config()
    made.vision_config.image_size = 336
    return families.geometry(made)


def matrix(geometry: Geometry, tokens: int) -> tuple[Tensor, Tensor]:
    """Weights [tokens, total] and centres [tokens]."""
    (stage,) = Pooling().stages(geometry, tokens, None)
    outcome = stage.rule({"tokens": torch.zeros(2, geometry.total, 4)}, {})
    return outcome["weights"][0], outcome["index"][0]


def test_windows_by_hand() -> None:
    # three cells over four tokens: 0-1, 1-2, 2-3
    half = 0.5
    assert window_weights(3, 4).tolist() == [[half, half, 0, 0], [0, half, half, 0], [0, 0, half, half]]
    assert window_weights(2, 4).tolist() == [[half, half, 0, 0], [0, 0, half, half]]
    assert window_weights(1, 2).tolist() == [[half, half]]


@given(st.integers(1, 60), st.data())
def test_windows_are_those_of_adaptive_pooling(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, total))
    rows = torch.randn(3, total, generator=torch.Generator().manual_seed(total))
    expected = functional.adaptive_avg_pool1d(rows, count)
    torch.testing.assert_close(rows @ window_weights(count, total).T, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("tokens", "cell"), [(64, (3, 3)), (144, (2, 2)), (36, (4, 4)), (4, (12, 12)), (1, (24, 24))])
def test_whole_cells_are_plain_pooling(tokens: int, cell: tuple[int, int]) -> None:
    image = torch.randn(1, 5, 24, 24, generator=torch.Generator().manual_seed(1))
    weights, _ = matrix(clip_l(), tokens)
    expected = functional.avg_pool2d(image, cell).flatten(2).transpose(1, 2)
    torch.testing.assert_close(weights @ image.flatten(2).transpose(1, 2), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("tokens", "grid"), [(128, (8, 16)), (192, (12, 16)), (32, (4, 8))])
def test_other_lattices_are_adaptive_pooling(tokens: int, grid: tuple[int, int]) -> None:
    image = torch.randn(1, 5, 24, 24, generator=torch.Generator().manual_seed(1))
    weights, _ = matrix(clip_l(), tokens)
    expected = functional.adaptive_avg_pool2d(image, grid).flatten(2).transpose(1, 2)
    torch.testing.assert_close(weights @ image.flatten(2).transpose(1, 2), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("tokens", range(1, TOTAL))
def test_rows_sum_to_one_every_token_counts_and_the_centre_is_inside(tokens: int) -> None:
    weights, centres = matrix(families.geometry(config()), tokens)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(tokens), atol=1e-6, rtol=0)
    assert (weights >= 0).all() and (weights.sum(dim=0) > 0).all()
    assert (weights[torch.arange(tokens), centres] > 0).all()
    assert (centres[1:] > centres[:-1]).all()


def test_a_constant_map_stays_constant() -> None:
    for tokens in (64, 128, 29):
        weights, _ = matrix(clip_l(), tokens)
        torch.testing.assert_close(weights @ torch.full((576, 2), 3.0), torch.full((tokens, 2), 3.0), atol=1e-5, rtol=0)


def test_the_graph_pools_what_the_connector_gives() -> None:
    graphs = families.capture(build())
    result = rewrite(graphs, Pooling().stages(graphs.geometry, 16, None))
    with torch.no_grad():
        whole, _ = graphs.vision(pictures(2))
        pooled, kept = result.graphs.vision(pictures(2))
    expected = functional.avg_pool2d(whole.transpose(1, 2).unflatten(2, (8, 8)), 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(pooled, expected, atol=1e-5, rtol=0)
    assert kept["connector"][0].tolist() == [8 * r + c for r in range(1, 8, 2) for c in range(1, 8, 2)]
