"""Down-sampling: the checkpoint's own tower on a smaller image, really fewer rows, and counts that are no grid."""

import re
from typing import Any

import pytest
import torch
from models import PATCH, SIDE, TOTAL, Tower, build, pictures
from torch import Tensor
from torch.nn import functional

from tokcarve.passes import families
from tokcarve.passes.blocks import ResizedPatches
from tokcarve.passes.choose import top_in_order
from tokcarve.passes.errors import MethodError
from tokcarve.passes.insert import RewriteResult, StageRecord, rewrite
from tokcarve.passes.invariants import check_carved
from tokcarve.passes.methods.downsample import Downsample
from tokcarve.passes.stage import Carry, Outcome, Signals, Stage

GRIDS = [(16, (4, 4)), (1, (1, 1)), (49, (7, 7)), (6, (2, 3)), (8, (2, 4)), (24, (4, 6)), (56, (7, 8)), (7, (1, 7))]
TOWERS: list[Tower] = ["clip", "siglip"]


def smaller(pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """The image of `grid` patches that torch itself makes."""
    size = (grid[0] * PATCH, grid[1] * PATCH)
    return functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)


def carved(tower: Tower, tokens: int) -> RewriteResult:
    graphs = families.capture(build("llama", tower))
    return rewrite(graphs, Downsample().stages(graphs.geometry, tokens, None))


@torch.no_grad()
def own_tower(model: Any, pixels: Tensor) -> Tensor:
    """The checkpoint's features of an image of any size, through its projector."""
    clip = model.config.vision_config.model_type == "clip_vision_model"
    states = model.model.vision_tower(pixels, output_hidden_states=True, interpolate_pos_encoding=True).hidden_states
    rows = states[-2][:, 1:] if clip else states[-1]
    features: Tensor = model.model.multi_modal_projector(rows)
    return features


@pytest.mark.parametrize("grid", [(4, 4), (1, 1), (2, 3), (7, 1), (8, 8), (3, 8)])
def test_pixels_shrink_as_torch_shrinks_them(grid: tuple[int, int]) -> None:
    patches = families.capture(build()).parts.patches
    resized = ResizedPatches(patches, grid, patch=PATCH, side=SIDE)
    found = resized.down @ pictures(2) @ resized.across
    torch.testing.assert_close(found, smaller(pictures(2), grid), atol=1e-5, rtol=0)
    for matrix in (resized.down, resized.across.T):
        torch.testing.assert_close(matrix.sum(dim=1), torch.ones(len(matrix)), atol=1e-5, rtol=0)
        assert matrix.min() >= 0 and (matrix.sum(dim=0) > 0).all(), "every pixel of the image counts"


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize(("tokens", "grid"), GRIDS)
def test_it_is_the_checkpoints_tower_on_a_smaller_image(tower: Tower, tokens: int, grid: tuple[int, int]) -> None:
    result = carved(tower, tokens)
    assert result.schedule == (StageRecord(site="pixels", total=TOTAL, keep=tokens, how="resize"),)
    with torch.no_grad():
        features, _ = result.graphs.vision(pictures(3))
    expected = own_tower(build("llama", tower), smaller(pictures(3), grid))
    assert features.shape == (3, tokens, 48)
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("tower", TOWERS)
def test_the_comparison_has_power(tower: Tower) -> None:
    with torch.no_grad():
        features, _ = carved(tower, 12).graphs.vision(pictures(3))
        flipped, _ = carved(tower, 12).graphs.vision(pictures(3).flip(2))
    assert (features - flipped).abs().max() > 0.1
    for other in (smaller(pictures(3), (4, 3)), functional.interpolate(pictures(3), size=(42, 56), mode="nearest")):
        assert (features - own_tower(build("llama", tower), other)).abs().max() > 0.1


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("tokens", [6, 16])
def test_every_layer_runs_on_fewer_rows(tower: Tower, tokens: int) -> None:
    result = carved(tower, tokens)
    check_carved(result.graphs, result.schedule)
    geometry = result.graphs.geometry
    rows = {
        node.target: node.meta["val"].shape[1]
        for node in result.graphs.vision.graph.nodes
        if node.op == "call_module" and not str(node.target).startswith("select_")
    }
    wanted = ["resized_embeddings", *(f"layers.{i}" for i in range(geometry.vision.layers_used))]
    assert rows == dict.fromkeys(wanted, tokens + geometry.vision.prefix) | {"connector": tokens}
    weights = {weight.data_ptr() for weight in families.capture(build("llama", tower)).vision.parameters()}
    assert {weight.data_ptr() for weight in result.graphs.vision.parameters()} == weights, "shared, not copied"


@pytest.mark.parametrize(
    ("tokens", "ids"),
    [
        (1, [36]),
        (4, [18, 22, 50, 54]),
        (6, [17, 20, 22, 49, 52, 54]),
        (16, [9, 11, 13, 15, 25, 27, 29, 31, 41, 43, 45, 47, 57, 59, 61, 63]),
    ],
)
def test_the_index_is_the_patch_in_the_middle(tokens: int, ids: list[int]) -> None:
    with torch.no_grad():
        _, kept = carved("clip", tokens).graphs.vision(pictures(2))
    assert list(kept) == ["pixels"] and kept["pixels"].dtype == torch.int64
    assert kept["pixels"].tolist() == [ids, ids]


def test_a_later_cut_counts_in_patches_of_the_whole_image() -> None:
    def rule(signals: Signals, carry: Carry) -> Outcome:
        return {"score": signals["tokens"].norm(dim=2)}

    graphs = families.capture(build())
    cut = Stage(site="connector", reads=("tokens",), rule=rule, how="choose", keep=5)
    result = rewrite(graphs, [*Downsample().stages(graphs.geometry, 16, None), cut])
    check_carved(result.graphs, result.schedule)
    with torch.no_grad():
        whole, kept = carved("clip", 16).graphs.vision(pictures(3))
        features, found = result.graphs.vision(pictures(3))
    chosen = top_in_order(whole.norm(dim=2), 5)
    torch.testing.assert_close(features, whole.gather(1, chosen.unsqueeze(2).expand(-1, -1, 48)), atol=1e-6, rtol=0)
    assert torch.equal(found["connector"], kept["pixels"].gather(1, chosen))


@pytest.mark.parametrize("tower", TOWERS)
def test_a_constant_image_stays_constant(tower: Tower) -> None:
    flat = torch.full((2, 3, SIDE, SIDE), 0.7)
    with torch.no_grad():
        features, _ = carved(tower, 6).graphs.vision(flat)
    expected = own_tower(build("llama", tower), torch.full((2, 3, 28, 42), 0.7))
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=0)


def test_a_model_of_half_precision_shrinks_in_float32() -> None:
    graphs = families.capture(build(dtype=torch.float16))
    result = rewrite(graphs, Downsample().stages(graphs.geometry, 16, None))
    with torch.no_grad():
        features, _ = result.graphs.vision(pictures(2).half())
    assert features.dtype == torch.float16
    expected = own_tower(build(dtype=torch.float16), smaller(pictures(2).half().float(), (4, 4)).half())
    torch.testing.assert_close(features, expected, atol=0.05, rtol=0)


@pytest.mark.parametrize("tokens", [11, 13, 33, 47, 57, 63])
def test_a_count_without_a_grid_is_refused(tokens: int) -> None:
    geometry = families.capture(build()).geometry
    with pytest.raises(MethodError, match=f"at most 8 x 8 patches, and {tokens} is none; ") as refused:
        Downsample().stages(geometry, tokens, None)
    named = re.search(r"(\d+) and (\d+) are$", str(refused.value))
    assert named is not None
    counts = [int(count) for count in named.groups()]
    fits = [n for n in range(1, TOTAL) if any(n % h == 0 and n // h <= 8 for h in range(1, 9))]
    assert counts == sorted(counts) and set(counts) <= set(fits)
    away = sorted(abs(n - tokens) for n in fits)
    assert sorted(abs(n - tokens) for n in counts) == away[:2], "the nearest two"
    assert all(Downsample().stages(geometry, count, None)[0].keep == count for count in counts)


def test_keeping_all_plans_nothing() -> None:
    assert Downsample().stages(families.capture(build()).geometry, TOTAL, None) == ()
