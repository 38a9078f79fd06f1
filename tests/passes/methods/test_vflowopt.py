"""VFlowOpt: the recorded importance and entropy, recycling by hand and against a plain loop, and what it refuses."""

import itertools

import pytest
import torch
from goldens_support import IMAGES, Recorded, golden_graphs, golden_inputs
from hypothesis import given
from hypothesis import strategies as st
from models import TOTAL, Tower, build, pictures
from torch import Tensor
from watcher import Watcher

from tokcarve.passes import families
from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.insert import rewrite
from tokcarve.passes.methods.vflowopt import VFlowOpt
from tokcarve.passes.recycling import cells_of, entropy, grey, importance, recycled
from tokcarve.passes.stage import Outcome
from tokcarve.passes.taps import Attention

MAPS = list(itertools.product((1.5, 3.0, 6.0), (0.0, 0.5)))


@pytest.fixture(scope="module")
def golden() -> Recorded:
    return Recorded("vflowopt_map")


@pytest.fixture(scope="module")
def attention() -> Tensor:
    """Layer 22 of the golden tower between patches alone, [4, 576, 576], as the maps were recorded."""
    parts = golden_graphs().parts
    with torch.no_grad():
        rows = parts.patches(golden_inputs()[0])
        for block in parts.vision_blocks[:22]:
            rows = block(rows)
        found: Tensor = Attention(parts.vision_blocks[22])(rows[:, 1:])
    return found


def bytes_of(pixels: Tensor, geometry: Geometry) -> Tensor:
    """The 8-bit image that normalised pixels [batch, 3, height, width] were made of."""
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (geometry.vision.mean, geometry.vision.std))
    exact = (pixels * std + mean) * 255
    assert (exact - exact.round()).abs().max() < 1e-3
    return exact.round()


def patches(image: Tensor, patch: int) -> Tensor:
    """[batch, height, width] -> [batch, patches, pixels], patch by patch."""
    batch, height, width = image.shape
    corners = [(r, c) for r in range(0, height, patch) for c in range(0, width, patch)]
    cut = [image[:, r : r + patch, c : c + patch].reshape(batch, -1) for r, c in corners]
    return torch.stack(cut, dim=1)


def wrapped() -> Tensor:
    """The grey levels of the reference: pixels in -1..1 times 255, cast to a byte that wraps."""
    levels = bytes_of(golden_inputs()[0], golden_graphs().geometry)
    wraps = torch.trunc(255 * (levels / 127.5 - 1)).to(torch.int64) % 256
    return patches(torch.round(0.3333 * wraps.sum(dim=1).float()), 14)


class TestRecorded:
    @pytest.mark.parametrize(("threshold", "alpha"), MAPS)
    def test_importance(self, golden: Recorded, attention: Tensor, threshold: float, alpha: float) -> None:
        entry = f"t{threshold}_a{alpha}"
        score = importance(attention, threshold) + alpha * torch.softmax(entropy(wrapped()), dim=1)
        expected = golden.stack(entry, "importance")
        assert ((score - expected).abs().amax(dim=1) < 1e-5 * expected.amax(dim=1)).all()
        torch.testing.assert_close(score.sum(dim=1), torch.full((4,), 1 + alpha), atol=1e-5, rtol=0)
        received = attention.mean(dim=1)
        for i in IMAGES:
            assert golden.trusted(i, entry)
            sinks = (received[i] > threshold * received[i].mean()).nonzero().flatten()
            assert sinks.tolist() == sorted(golden.get(i, entry, "sink_set").tolist())
            rows = attention[i, sinks].mean(dim=0)
            torch.testing.assert_close(importance(attention, threshold)[i], rows, atol=1e-6, rtol=1e-5)

    def test_the_comparison_has_power(self, golden: Recorded, attention: Tensor) -> None:
        for threshold, other in ((1.5, 1.6), (3.0, 3.3), (6.0, 8.0)):
            expected = golden.stack(f"t{threshold}_a0.0", "importance")
            far = (importance(attention, other) - expected).abs().amax(dim=1) > 1e-3 * expected.amax(dim=1)
            assert far.all()

    def test_entropy(self, golden: Recorded) -> None:
        for threshold, alpha in MAPS:
            assert torch.equal(entropy(wrapped()), golden.stack(f"t{threshold}_a{alpha}", "entropy"))

    def test_grey_levels_are_those_of_the_8_bit_image(self) -> None:
        pixels, geometry = golden_inputs()[0], golden_graphs().geometry
        levels = patches(bytes_of(pixels, geometry).mean(dim=1).round(), 14)
        assert torch.equal(grey(pixels, geometry), levels)
        assert not torch.equal(levels, wrapped()), "the reference's cast wraps"


class TestImportance:
    def test_without_a_threshold_it_is_the_mean_over_all_rows(self, attention: Tensor) -> None:
        torch.testing.assert_close(importance(attention, 0.0), attention.mean(dim=1), atol=1e-7, rtol=1e-5)

    def test_without_a_sink_the_most_attended_patch_is_one(self, attention: Tensor) -> None:
        score = importance(attention, 1e9)
        most = attention.mean(dim=1).argmax(dim=1)
        assert torch.equal(score, attention[torch.arange(4), most])
        assert score.isfinite().all()
        even = torch.full((2, 5, 5), 0.2)
        assert torch.equal(importance(even, 1.0), even[:, 0]), "all alike: the first"

    def test_entropy_by_hand(self) -> None:
        half, four, flat = [7.0, 7, 9, 9], [0.0, 85, 170, 255], [3.0] * 4
        torch.testing.assert_close(entropy(torch.tensor([[half, four, flat]]))[0], torch.tensor([1.0, 2.0, 0.0]))


def toy(cell: float = 2.0, side: int = 4) -> Tensor:
    """The cells of a tower of side x side patches."""
    return cells_of((side, side), cell)


def weighed(made: Outcome, total: int) -> Tensor:
    """What each result holds of every token: [batch, keep, total], its own weight included."""
    itself = (made["index"].unsqueeze(2) == torch.arange(total)).float()
    return made["weights"] + made["own"].unsqueeze(2) * itself


class TestRecycling:
    def test_the_toy_of_the_specification(self) -> None:
        score = (torch.arange(16.0)[None] + 1) / 136
        made = recycled(score, toy(), 8)
        assert made["index"][0].tolist() == [5, 7, 9, 11, 12, 13, 14, 15]
        assert made["own"][0].tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
        shares = {0: {0: 1, 1: 2, 4: 5, 5: 6}, 1: {2: 3, 3: 4, 6: 7, 7: 8}, 2: {8: 9, 9: 10}, 3: {10: 11, 11: 12}}
        expected = torch.zeros(8, 16)
        for row, held in shares.items():
            for token, share in held.items():
                expected[row, token] = share / sum(held.values())
        torch.testing.assert_close(made["weights"][0], expected, atol=1e-6, rtol=0)

    def test_a_cell_without_pruned_tokens_gives_its_slot_to_the_next_best(self) -> None:
        score = torch.tensor([[9.0, 8, 4, 1, 7, 6, 3, 2, 1, 1, 1, 1, 1, 1, 1, 5]]) / 100
        made = recycled(score, toy(), 8)
        # 0, 1, 4, 5 fill the first cell; 2, 8, 15 head the others; 6 is the best of the rest
        assert made["index"][0].tolist() == [0, 1, 2, 4, 5, 6, 8, 15]
        assert made["own"][0].tolist() == [1, 1, 0, 1, 1, 1, 0, 0]
        assert made["weights"][0, [0, 1, 3, 4, 5]].abs().max() == 0

    @given(st.integers(2, 6), st.floats(1, 4), st.integers(0, 999), st.sampled_from([3, 1000]), st.data())
    def test_the_same_as_a_loop(self, side: int, cell: float, seed: int, levels: int, data: st.DataObject) -> None:
        cells = toy(cell, side)
        total, count = cells.shape
        keep = data.draw(st.integers(count, total))
        draw = torch.Generator().manual_seed(seed)
        score = torch.randint(1, levels, (2, total), generator=draw).float() / 1024
        made = recycled(score, cells, keep)
        held = weighed(made, total)
        torch.testing.assert_close(held.sum(dim=2), torch.ones(2, keep), atol=1e-5, rtol=0)
        for image in range(2):
            index, rows = looped(score[image].tolist(), cells.argmax(dim=1).tolist(), keep, count)
            assert made["index"][image].tolist() == index
            torch.testing.assert_close(held[image], torch.tensor(rows), atol=1e-5, rtol=0)

    def test_negative_importance_weighs_nothing(self) -> None:
        score = torch.tensor([[-0.5, -0.2, 0.5, -0.1, 0.3, -0.4, 0.1, -0.3, *([-0.9] * 8)]])
        made = recycled(score, toy(), 5)
        held = weighed(made, 16)[0]
        assert made["index"][0].tolist() == [2, 4, 6, 8, 10]
        torch.testing.assert_close(held[1], (torch.arange(16) == 4).float(), atol=1e-30, rtol=0)
        torch.testing.assert_close(held.sum(dim=1), torch.ones(5))
        torch.testing.assert_close(held[3, [8, 9, 12, 13]], torch.full((4,), 0.25))  # all negative: alike


def looped(score: list[float], cell_of: list[int], keep: int, cells: int) -> tuple[list[int], list[list[float]]]:
    """Kept tokens and what each holds, one cell at a time; equal scores go to the lower index."""
    total = len(score)
    falling = sorted(range(total), key=lambda i: (-score[i], i))
    low = falling[keep - cells :]
    heads = {cell_of[i]: i for i in reversed(low)}
    filling = [i for i in low if i not in heads.values()][: cells - len(heads)]
    mix: dict[int, list[float]] = {}
    for cell, head in heads.items():
        inside = [i for i in low if cell_of[i] == cell and i not in filling]
        whole = sum(score[i] for i in inside)
        mix[head] = [score[i] / whole if i in inside else 0.0 for i in range(total)]
    index = sorted([*falling[: keep - cells], *filling, *mix])
    return index, [mix.get(i, [float(i == j) for j in range(total)]) for i in index]


@pytest.mark.parametrize("side", [4, 8, 24])
@pytest.mark.parametrize("cell", [1.0, 2.0, 2.5, 3.3, 7.9, 15.581, 100.0])
def test_every_cell_holds_patches_and_every_patch_is_in_one(side: int, cell: float) -> None:
    cells = toy(cell, side)
    across = len({int(i / cell) for i in range(side)})
    assert torch.equal(cells.sum(dim=1), torch.ones(side * side))
    assert (cells.sum(dim=0) > 0).all(), f"{int((cells.sum(dim=0) == 0).sum())} of {cells.shape[1]} cells are empty"
    assert cells.shape[1] == across**2


@pytest.mark.parametrize("tower", ["clip", "siglip"])
def test_the_graph_recycles_behind_the_connector(tower: Tower) -> None:
    graphs = families.capture(build("llama", tower))
    method = VFlowOpt(threshold=1.2, cell=4.0, scope="first")
    watcher = Watcher(rewrite(graphs, method.stages(graphs.geometry, 16, None)).graphs.vision)
    last = graphs.geometry.vision.layers_used - 1
    with torch.no_grad():
        features, kept = watcher.run(pictures(3))
        whole, _ = graphs.vision(pictures(3))
    maps, prefix = watcher.seen[f"select_attention_l{last}"], graphs.geometry.vision.prefix
    score = watcher.seen[f"select_rule_l{last}"]["importance"]
    assert torch.equal(score, importance(maps[:, prefix:, prefix:], 1.2))
    made = recycled(score, cells_of((8, 8), 4.0), 16)
    assert torch.equal(kept["connector"], made["index"])
    torch.testing.assert_close(features, weighed(made, TOTAL) @ whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("alpha", [0.5, -0.5])
def test_alpha_reads_the_pixels_and_changes_what_stays(alpha: float) -> None:
    graphs = families.capture(build())
    plain, weighed_ = (
        VFlowOpt(cell=4.0, alpha=a, scope="first").stages(graphs.geometry, 16, None) for a in (0.0, alpha)
    )
    assert [stage.reads for stage in plain] == [("attention",), ()]
    assert [stage.reads for stage in weighed_] == [("attention", "pixels"), ()]
    maps = torch.softmax(torch.randn(2, TOTAL + 1, TOTAL + 1, generator=torch.Generator().manual_seed(0)), dim=2)
    score = plain[0].rule({"attention": maps}, {})["importance"]
    for pixels in (pictures(2), torch.zeros(2, 3, 112, 112)):
        found = weighed_[0].rule({"attention": maps, "pixels": pixels}, {})["importance"]
        added = alpha * torch.softmax(entropy(grey(pixels, graphs.geometry)), dim=1)
        torch.testing.assert_close(found, score + added, atol=1e-6, rtol=0)
    with torch.no_grad():
        (_, one), (_, other) = (rewrite(graphs, stages).graphs.vision(pictures(2)) for stages in (plain, weighed_))
    assert not torch.equal(one["connector"], other["connector"])


def test_fewer_tokens_than_cells_are_refused() -> None:
    geometry = families.capture(build()).geometry
    for scope, least in (("first", 16), ("all", 14)):
        method = VFlowOpt(cell=2.0, scope=scope)  # type: ignore[arg-type]
        assert method.stages(geometry, least, None)[1].keep == 16
        words = rf"cell=2.0 recycles into 16 tokens, and {least - 1} were asked for; keep {least} or more"
        with pytest.raises(MethodError, match=words):
            method.stages(geometry, least - 1, None)
        assert method.stages(geometry, TOTAL, None) == ()
