"""PyramidDrop against the authors' runs, what it reads, its counts and averages, and what it refuses."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from goldens_support import IMAGES, Recorded, carved, check_read, golden_graphs, inside
from models import IMAGE, TOTAL, build, pictures, prompt
from torch import Tensor
from twelve import SEEN
from watcher import Watcher

from tokcarve.passes import families
from tokcarve.passes.choose import top_in_order
from tokcarve.passes.errors import BudgetError, MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.graph import thread, visual_start
from tokcarve.passes.insert import rewrite
from tokcarve.passes.methods.pyramiddrop import PyramidDrop
from tokcarve.recipes.budgets import resolve_budget
from tokcarve.recipes.schema import Budget

# recorded run -> the method's parameters, the count behind the last cut
RUNS: dict[str, tuple[dict[str, Any], int]] = {
    "official": ({}, 72),
    "ours192": ({"layers": (3, 11, 21), "ratio": 0.4556}, 54),
    "ours128": ({"layers": (1, 7, 15), "ratio": 0.4197}, 43),
    "ours64": ({"layers": (0, 5, 13), "ratio": 0.2896}, 14),
}


@pytest.fixture(scope="module")
def golden() -> Recorded:
    return Recorded("pyramiddrop")


def recorded_sites(golden: Recorded, budget: str) -> dict[str, str]:
    """The recorded array of kept patches behind every site; boundaries count the layers before them."""
    return {f"language.layers.{b - 1}": f"kept_l{b:02d}" for b in golden.get(0, budget, "boundaries").tolist()}


class TestRecorded:
    @pytest.mark.parametrize("budget", RUNS)
    def test_the_runs(self, golden: Recorded, budget: str) -> None:
        assert all(golden.trusted(image, budget) for image in IMAGES)
        params, tokens = RUNS[budget]
        check_read(carved(PyramidDrop(**params), tokens), golden, budget, recorded_sites(golden, budget))

    @pytest.mark.parametrize("budget", RUNS)
    def test_scores_and_positions(self, golden: Recorded, budget: str) -> None:
        params, tokens = RUNS[budget]
        result = carved(PyramidDrop(**params), tokens)
        found = inside(result)
        for b in golden.get(0, budget, "boundaries").tolist():
            score = found[f"select_rule_t{b - 1}"]["score"]
            torch.testing.assert_close(score, golden.stack(budget, f"score_l{b:02d}"), atol=1e-7, rtol=1e-3)
            assert torch.equal(
                found[f"select_positions_t{b - 1}"], golden.stack(budget, f"position_ids_l{b:02d}").long()
            )
        counts = [record.total for record in result.schedule] + [tokens]
        assert [623 - 576 + count for count in counts] == sorted(
            set(golden.get(0, budget, "decode_pos_per_layer").tolist()), reverse=True
        )
        assert thread(result.graphs.language).shift == 576 - tokens

    @pytest.mark.parametrize(
        ("params", "tokens"),
        [({}, 73), ({"layers": (8, 16, 24)}, 72), ({"ratio": 0.51}, 72), ({"layers": (7, 15)}, 72)],
    )
    def test_a_neighbour_is_not_the_recorded_run(self, golden: Recorded, params: dict[str, Any], tokens: int) -> None:
        with pytest.raises(AssertionError):
            check_read(carved(PyramidDrop(**params), tokens), golden, "official", {})

    def test_positions_that_are_kept_are_not_the_recorded_run(self, golden: Recorded) -> None:
        graphs = golden_graphs()
        stages = [replace(stage, positions="original") for stage in PyramidDrop().stages(graphs.geometry, 72, None)]
        with pytest.raises(AssertionError):
            check_read(rewrite(graphs, stages), golden, "official", {})


def test_it_reads_what_the_next_layer_would_attend_to() -> None:
    """Behind layer 1 of an unpruned model: attention of layer 2, from the last real row of prompts of two lengths."""
    network = build(text_layers=8, attention="eager")
    graphs = families.capture(build(text_layers=8))
    graphs = rewrite(graphs, PyramidDrop(layers=(1,)).stages(graphs.geometry, 9, None)).graphs
    ids, lengths = prompt([7, 11], visual=TOTAL)
    watcher = Watcher(graphs.language)
    with torch.no_grad():
        seen = graphs.see(pictures(2))
        start = visual_start(ids, IMAGE)
        watcher.run(*graphs.embedding(ids, seen.features), lengths, start)
        for row in range(2):
            alone = ids[row : row + 1, : int(lengths[row])]
            whole = network(alone, pixel_values=pictures(2)[row : row + 1], output_attentions=True)
            first = int(start[row])
            expected = whole.attentions[2][0, :, -1, first : first + TOTAL].mean(dim=0)
            found: Tensor = watcher.seen["select_rule_t1"]["score"][row]
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)


def test_by_hand() -> None:
    stage = PyramidDrop().stages(golden_graphs().geometry, 72, None)[0]

    def kept(heads: Tensor, keep: int) -> list[int]:
        return top_in_order(stage.rule({"next_last_attention": heads}, {})["score"], keep)[0].tolist()

    assert kept(SEEN.unsqueeze(1), 5) == [0, 3, 4, 7, 11]
    # alone the heads keep 0 and 2, and 1 and 2; their mean is [.25, .375, .25, .125], whose tie goes to the first
    heads = torch.tensor([[[0.5, 0.125, 0.25, 0.125], [0.0, 0.625, 0.25, 0.125]]])
    assert kept(heads, 2) == [0, 1]


class TestCounts:
    @pytest.mark.parametrize(
        ("total", "params", "tokens", "counts", "mean"),
        [
            (576, {}, 72, [288, 144, 72], 270.0),
            (2880, {}, 360, [1440, 720, 360], 1350.0),
            (1296, {}, 162, [648, 324, 162], 607.5),
            (576, *RUNS["ours192"], [262, 120, 54], 191.9),
            (576, *RUNS["ours128"], [242, 101, 43], 128.1),
            (576, *RUNS["ours64"], [167, 48, 14], 64.0),
            (576, {"layers": (7,)}, 72, [72], 198.0),
            (576, {"ratio": 0.5}, 300, [300], 369.0),
            (576, {}, 575, [575], 575.5),
        ],
    )
    def test_by_the_layers(
        self, total: int, params: dict[str, Any], tokens: int, counts: list[int], mean: float
    ) -> None:
        geometry = replace(golden_graphs().geometry, total=total)
        method = PyramidDrop(**params)
        stages = method.stages(geometry, tokens, None)
        assert [stage.keep for stage in stages] == counts
        rows, left = list[int](), total
        keeps = {stage.site: stage.keep for stage in stages}
        for layer in range(32):
            rows.append(left)
            left = keeps.get(f"language.layers.{layer}", left)
        assert sum(rows) / 32 == pytest.approx(mean, abs=0.05)
        # the mean asked for comes back to these tokens, or to a count whose mean is no farther
        if counts == [288, 144, 72]:
            assert resolve_budget(Budget(avg_tokens=round(mean)), method, geometry) == tokens

    @pytest.mark.parametrize(("layers", "cuts"), [(32, (7, 15, 23)), (28, (6, 13, 20)), (8, (1, 3, 5)), (5, (0, 1, 3))])
    def test_layers_scale_with_depth(self, layers: int, cuts: tuple[int, ...]) -> None:
        geometry = deep(layers)
        assert [s.site for s in PyramidDrop().stages(geometry, 72, None)] == [f"language.layers.{i}" for i in cuts]


def deep(layers: int) -> Geometry:
    geometry = golden_graphs().geometry
    return replace(geometry, text=replace(geometry.text, layers=layers))


class TestRefusals:
    @pytest.mark.parametrize(("ratio", "least"), [(None, "163.5"), (0.0, "144.8")])
    def test_an_average_that_late_cuts_cannot_reach(self, ratio: float | None, least: str) -> None:
        with pytest.raises(
            BudgetError, match=rf"avg_tokens=128 cannot be reached by PyramidDrop.*come to {least}\.\.576"
        ):
            resolve_budget(Budget(avg_tokens=128), PyramidDrop(ratio=ratio), golden_graphs().geometry)

    def test_earlier_cuts_reach_it(self) -> None:
        method = PyramidDrop(layers=(1, 7, 15))
        tokens = resolve_budget(Budget(avg_tokens=128), method, golden_graphs().geometry)
        assert 1 < tokens < 72

    @pytest.mark.parametrize(
        ("layers", "depth", "message"),
        [
            ((7, 7), 32, "behind layers 7, 7 of 32, and each must lie behind the one before"),
            ((15, 7), 32, "behind layers 15, 7 of 32"),
            ((7, 31), 32, "32 layers.*behind layers 0..30.*behind layer 31"),
            ((), 32, "names no layer"),
            (None, 3, "3 layers.*behind layers 0..1.*behind layer 2"),
        ],
    )
    def test_layers(self, layers: tuple[int, ...] | None, depth: int, message: str) -> None:
        with pytest.raises(MethodError, match=message):
            PyramidDrop(layers=layers).stages(deep(depth), 72, None)
