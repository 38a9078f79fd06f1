"""FEATHER against the authors' runs, its grid and counts by hand, and what it refuses."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from goldens_support import IMAGES, Recorded, carved, check_read, golden_graphs, inside
from torch import Tensor

from tokcarve.passes.choose import top_in_order
from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.insert import rewrite
from tokcarve.passes.methods.feather import Feather, first_count
from tokcarve.passes.stage import Stage

SITES = {"language.layers.7": "kept_l08", "language.layers.15": "kept_l16"}
RUNS = ("R0.7_s3", "R0.78_s3", "R0.4_s3")
GRID = {24 * r + c for r in range(0, 24, 3) for c in range(0, 24, 3)}


@pytest.fixture(scope="module")
def golden() -> Recorded:
    return Recorded("feather")


def counts(golden: Recorded, image: int, budget: str) -> list[int]:
    return [len(golden.get(image, budget, name)) for name in SITES.values()]


def geometry(side: int) -> Geometry:
    whole = golden_graphs().geometry
    return replace(whole, vision=replace(whole.vision, grid=(side, side)), total=side * side)


def stages_of(tokens: int, side: int = 24, **params: Any) -> tuple[Stage, ...]:
    return Feather(**params).stages(geometry(side), tokens, None)


class TestRecorded:
    @pytest.mark.parametrize("budget", RUNS)
    @pytest.mark.parametrize("image", IMAGES)
    def test_the_runs(self, golden: Recorded, budget: str, image: int) -> None:
        """The code's union has another count for every image; given that count, the same tokens are kept."""
        assert golden.trusted(image, budget)
        first, tokens = counts(golden, image, budget)
        check_read(carved(Feather(first=first), tokens), golden, budget, SITES, images=[image])

    @pytest.mark.parametrize("budget", RUNS)
    def test_scores_positions_and_caches(self, golden: Recorded, budget: str) -> None:
        first, tokens = counts(golden, 0, budget)
        found = inside(carved(Feather(first=first), tokens))
        score = found["select_rule_t7"]["score"]
        on_grid = torch.tensor([2.0 if patch in GRID else 0.0 for patch in range(576)])
        torch.testing.assert_close(score - on_grid, golden.stack(budget, "score_l08"), atol=3e-7, rtol=1e-4)
        torch.testing.assert_close((score - on_grid).sum(dim=1), torch.ones(4), atol=1e-4, rtol=0)
        later = torch.from_numpy(golden.get(0, budget, "score_l16"))
        torch.testing.assert_close(found["select_rule_t15"]["score"][0], later, atol=1e-7, rtol=1e-4)
        for layer in (7, 15):
            positions = golden.get(0, budget, f"position_ids_l{layer + 1:02d}").tolist()
            assert found[f"select_positions_t{layer}"][0].tolist() == positions
        rows = [found[f"layers.{layer}"][1].shape[2] for layer in range(32)]
        assert rows == golden.get(0, budget, "kv_len_per_layer").tolist()

    def test_its_first_choice_holds_the_code_s(self, golden: Recorded) -> None:
        """Where R is 0.7: 21 tokens, 236 behind the first cut."""
        kept = inside(carved(Feather(), 21))["select_choose_t7"]
        assert kept.shape[1] == 236
        for image in IMAGES:
            assert set(golden.get(image, "R0.7_s3", "kept_l08").tolist()) | GRID <= set(kept[image].tolist())

    def test_one_cut_without_a_grid(self, golden: Recorded) -> None:
        """The code's own baseline, behind layer 2, which is what the second cut does."""
        budget, graphs = "norope_K3_R0.75", golden_graphs()
        assert all(golden.trusted(image, budget) for image in IMAGES)
        tokens = len(golden.get(0, budget, "kept_l03"))
        only = replace(stages_of(21)[1], site="language.layers.2", keep=tokens)
        check_read(rewrite(graphs, (only,)), golden, budget, {"language.layers.2": "kept_l03"})

    def test_a_neighbour_is_not_the_recorded_run(self, golden: Recorded) -> None:
        first, tokens = counts(golden, 0, "R0.7_s3")
        others = [
            (Feather(first=first), tokens + 1),
            (Feather(first=first + 9), tokens),
            (Feather(first=first, stride=4), tokens),
            (Feather(first=first, layers=(6, 15)), tokens),
        ]
        for method, count in others:
            with pytest.raises(AssertionError):
                check_read(carved(method, count), golden, "R0.7_s3", {}, images=[0])


class TestScores:
    logits = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))

    def scores(self) -> list[Tensor]:
        stages = stages_of(2, side=4, first=9)
        return [stage.rule({"last_logits_unrotated": self.logits}, {})["score"] for stage in stages]

    def test_of_the_second_cut_are_shares_of_attention_among_the_tokens(self) -> None:
        powers = self.logits.double().exp()
        expected = (powers / powers.sum(dim=2, keepdim=True)).mean(dim=1)
        torch.testing.assert_close(self.scores()[1].double(), expected, atol=1e-6, rtol=0)

    def test_of_the_first_cut_put_the_grid_above_the_best(self) -> None:
        first, second = self.scores()
        for i in range(2):
            others = sorted(set(range(16)) - {0, 3, 12, 15}, key=lambda j: -float(second[i, j]))
            assert top_in_order(first, 9)[i].tolist() == sorted([0, 3, 12, 15, *others[:5]])

    def test_equal_tokens_go_by_index(self) -> None:
        first, second = (
            stage.rule({"last_logits_unrotated": torch.zeros(1, 3, 16)}, {})["score"]
            for stage in stages_of(2, side=4, first=6)
        )
        assert top_in_order(first, 6).tolist() == [[0, 1, 2, 3, 12, 15]]
        assert top_in_order(second, 2).tolist() == [[0, 1]]


class TestCounts:
    @pytest.mark.parametrize(
        ("total", "grid", "tokens", "first"),
        [
            (576, 64, 21, 236),  # R from 172 / 576, a little below 0.3, and 236 * 0.3 ** 2 = 21.2
            (729, 81, 26, 297),  # at R = 0.3 it is 299 and 26.9
            (576, 64, 575, 576),
            (16, 16, 3, 16),
        ],
    )
    def test_of_the_first_cut(self, total: int, grid: int, tokens: int, first: int) -> None:
        assert first_count(total, grid, tokens) == first

    @pytest.mark.parametrize(("total", "grid"), [(576, 64), (729, 81), (64, 9), (16, 1)])
    def test_of_the_first_cut_is_the_smallest_that_some_share_leaves(self, total: int, grid: int) -> None:
        for tokens in range(1, total):
            first = first_count(total, grid, tokens)
            if first < total:
                above = first - grid
                share = max(above / total, (tokens / first) ** 0.5)
                assert int(total * share + 1e-9) == above and int(first * share**2 + 1e-9) == tokens
                # one token fewer, and no share with that many would leave enough
                assert (first - 1) * above**2 <= tokens * total**2
            else:
                assert (total - 1) * (total - grid) ** 2 <= tokens * total**2

    @pytest.mark.parametrize(("side", "stride", "count"), [(24, 3, 64), (27, 3, 81), (27, 2, 196)])
    def test_of_the_grid(self, side: int, stride: int, count: int) -> None:
        stage = stages_of(21, side=side, stride=stride)[0]
        score = stage.rule({"last_logits_unrotated": torch.zeros(1, 1, side * side)}, {})["score"]
        assert int((score > 1).sum()) == count

    def test_two_stages(self) -> None:
        found = [(stage.site, stage.keep, stage.how, stage.positions) for stage in stages_of(21)]
        assert found == [
            ("language.layers.7", 236, "choose", "original"),
            ("language.layers.15", 21, "choose", "original"),
        ]

    @pytest.mark.parametrize(("tokens", "params"), [(575, {}), (64, {"stride": 1}), (64, {"first": 576})])
    def test_a_first_cut_of_nothing_is_left_out(self, tokens: int, params: dict[str, Any]) -> None:
        assert [(stage.site, stage.keep) for stage in stages_of(tokens, **params)] == [("language.layers.15", tokens)]

    def test_nothing_to_drop(self) -> None:
        assert stages_of(576) == ()


class TestRefused:
    @pytest.mark.parametrize(("tokens", "first", "least"), [(21, 63, 64), (200, 199, 200), (21, 577, 64)])
    def test_first_counts(self, tokens: int, first: int, least: int) -> None:
        with pytest.raises(MethodError, match=f"first={first}.*grid of 64.*{tokens} of 576.*choose {least}..576"):
            stages_of(tokens, first=first)

    def test_layers(self) -> None:
        with pytest.raises(MethodError, match="two layers, and 3 were named"):
            stages_of(21, layers=(1, 2, 3))
        with pytest.raises(MethodError, match="must lie behind the one before"):
            stages_of(21, layers=(5, 5))
