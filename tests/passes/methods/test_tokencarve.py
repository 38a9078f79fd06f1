"""TokenCarve against the authors' runs, a case they computed, loops, and what it refuses."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from goldens_support import IMAGES, Recorded, carved, check_read, golden_graphs, golden_inputs, inside
from torch import Tensor
from twelve import SEEN, TWELVE

from tokcarve.exporters.onnx import lower
from tokcarve.passes import choose
from tokcarve.passes.errors import ExportError, MethodError
from tokcarve.passes.insert import RewriteResult, rewrite
from tokcarve.passes.methods.tokencarve import TokenCarve, carving
from tokcarve.passes.stage import Outcome, Stage

SITE, START, LENGTH = "language.layers.1", 35, 623
BUDGETS = (192, 160, 128, 96, 64, 48, 32)


@pytest.fixture(scope="module")
def golden() -> Recorded:
    return Recorded("tokencarve")


@pytest.fixture(scope="module")
def entered() -> Tensor:
    """All rows behind layer 1 of the recorded prompts: [4, 623, 64]."""
    found: Tensor = inside(carved(TokenCarve(), 192))["layers.1"][0]
    return found


def untied(golden: Recorded, budget: str) -> list[int]:
    return [image for image in IMAGES if golden.get(image, budget, "margin_ok")]


def stage_of(total: int, tokens: int, **params: Any) -> Stage:
    (stage,) = TokenCarve(**params).stages(replace(golden_graphs().geometry, total=total), tokens, None)
    return stage


def merged(rows: Tensor, outcome: Outcome) -> Tensor:
    return choose.merge(
        rows,
        outcome["weights"],
        sources=outcome.get("sources"),
        index=outcome["index"],
        own=outcome.get("own"),
    )


class TestRecorded:
    @pytest.mark.parametrize("tokens", BUDGETS)
    @pytest.mark.parametrize("contribution", ["singular", "eigh"])
    def test_the_runs(self, golden: Recorded, tokens: int, contribution: Any) -> None:
        budget = f"{tokens}_off35"
        result = carved(TokenCarve(contribution=contribution), tokens)
        check_read(result, golden, budget, {SITE: "kept_patches"}, images=untied(golden, budget))

    def test_enough_of_them_have_no_ties(self, golden: Recorded) -> None:
        assert sum(len(untied(golden, f"{tokens}_off35")) for tokens in BUDGETS) == 15
        assert sum(len(untied(golden, f"{tokens}_off36")) for tokens in BUDGETS) == 19

    @pytest.mark.parametrize("tokens", BUDGETS)
    @pytest.mark.parametrize("start", [35, 36])
    def test_halves_members_and_rows(self, golden: Recorded, entered: Tensor, tokens: int, start: int) -> None:
        """Also of the code's own window, one row late; attention as recorded, contribution as found here."""
        budget, rows = f"{tokens}_off{start}", entered[:, start : start + 576]
        seen = golden.stack(budget, "attn_score").unsqueeze(1)
        outcome = stage_of(576, tokens).rule({"last_attention": seen, "states": rows}, {})
        made = torch.cat([entered[:, :start], merged(rows, outcome), entered[:, start + 576 :]], dim=1)
        for i in untied(golden, budget):
            kept = torch.cat([torch.arange(start), start + outcome["index"][i], torch.arange(start + 576, LENGTH)])
            assert kept.tolist() == golden.get(i, budget, "kept_seq").tolist()
            others = [start + other for other in outcome["sources"][i].tolist()]
            assert others == sorted(golden.get(i, budget, "B_seq_rank_order").tolist())
            pairs = [(others[b], start + int(outcome["index"][i, a])) for a, b in outcome["weights"][i].nonzero()]
            folded = (golden.get(i, budget, name).tolist() for name in ("merged_seq", "merged_into_seq"))
            assert sorted(pairs) == sorted(zip(*folded, strict=True))
            expected = torch.from_numpy(golden.get(i, budget, "hidden_in_l2"))
            torch.testing.assert_close(made[i], expected, atol=1e-4, rtol=0)

    def test_the_contribution(self, golden: Recorded, entered: Tensor) -> None:
        found = TokenCarve().contributions(entered[:, START : START + 576])
        torch.testing.assert_close(found, golden.stack("64_off35", "svd_score"), atol=0, rtol=1e-5)

    def test_a_neighbour_is_not_the_recorded_run(self, golden: Recorded) -> None:
        others = [
            (TokenCarve(), 97),
            (TokenCarve(layer=3), 96),
            (TokenCarve(weight=0.6), 96),
            (TokenCarve(contribution="norm"), 96),
            (TokenCarve(rounds=4), 96),
        ]
        for method, tokens in others:
            with pytest.raises(AssertionError):
                check_read(carved(method, tokens), golden, "96_off35", {}, images=[0, 1, 2])

    def test_text_positions_and_caches(self, golden: Recorded, entered: Tensor) -> None:
        result = carved(TokenCarve(), 96)
        found = inside(result)
        made = found["select_merge_t1"]
        assert torch.equal(made[:, :START], entered[:, :START])
        assert torch.equal(made[:, START + 96 :], entered[:, START + 576 :])
        for i in untied(golden, "96_off35"):
            assert found["select_positions_t1"][i].tolist() == golden.get(i, "96_off35", "rope_positions").tolist()
        assert caches(result) == [LENGTH - 576 + 96] * 32


@torch.no_grad()
def caches(result: RewriteResult) -> list[int]:
    """Rows in the cache of every layer behind the recorded prompts."""
    pixels, ids = golden_inputs()
    read, _ = result.graphs.read(ids, result.graphs.see(pixels), torch.full((4,), LENGTH))
    return [key.shape[2] for key in read.keys]


def computed() -> tuple[Tensor, Tensor, Tensor]:
    """A prompt with 576 image rows from row 36: rows [652, 640], those of the image, and the last row's attention."""
    q, d = torch.arange(652.0).double().unsqueeze(1), torch.arange(640.0).double()
    rows = torch.sin(0.013 * (q + 1) * (d + 1)) + 0.5 * torch.cos(0.7 * q + d)
    rows = ((rows + 0.3 * torch.sin(0.031 * q**2 + 0.9 * d)) * (1 + 0.5 * torch.sin(0.17 * q))).float()
    seen = torch.exp(2 * torch.sin(0.29 * q + 0.001 * q**1.5)).float().view(1, 1, -1)
    return rows, rows[36:612].unsqueeze(0), seen[:, :, 36:612].expand(-1, 2, -1)


class TestComputed:
    """What the authors' block made of a computed prompt, wider than its image has tokens."""

    def test_contribution(self) -> None:
        found = TokenCarve(directions=576).contributions(computed()[1])[0]
        assert float(found.sum()) == pytest.approx(111515.8, rel=1e-5)
        assert found[:4].tolist() == pytest.approx([189.0932, 174.9263, 221.8297, 240.4424], rel=1e-5)

    @pytest.mark.parametrize(
        ("tokens", "kept", "first", "size"),
        [
            (32, 9532, [12, 53, 114, 115, 154, 155], 51423.13),
            (64, 17540, [7, 10, 11, 12, 13, 14], 68859.56),
            (96, 28639, [], 85850.51),
            (120, 35578, [], 97075.78),
        ],
    )
    def test_merges(self, tokens: int, kept: int, first: list[int], size: float) -> None:
        rows, image, seen = computed()
        outcome = stage_of(576, tokens, directions=576).rule({"last_attention": seen, "states": image}, {})
        assert int(outcome["index"].sum()) == kept
        assert outcome["index"][0, : len(first)].tolist() == first
        left = torch.cat([rows[:36], merged(image, outcome)[0], rows[612:]])
        assert float(left.abs().sum()) == pytest.approx(size, rel=1e-6)


def by_loops(points: list[float], rows: Tensor, tokens: int) -> dict[int, Tensor]:
    """What is left by index, one token at a time."""
    falling = sorted(range(len(points)), key=lambda j: (-points[j], j))
    ranked = 3 * tokens // 2
    better, other = sorted(falling[: ranked // 2]), falling[ranked // 2 : ranked]
    units = [row / max(float(row.norm()), 1e-30) for row in rows]
    alike = {i: [float(units[i] @ units[a]) for a in better] for i in other}
    most = {i: max(alike[i], default=0.0) for i in other}
    goes = sorted(other, key=lambda i: (-most[i], i))[: min(tokens // 2, len(better))]
    members = {a: [rows[a]] for a in better}
    for i in goes:
        members[better[alike[i].index(most[i])]].append(rows[i])
    left = {a: torch.stack(rows).mean(dim=0) for a, rows in members.items()}
    return {**left, **{i: rows[i] for i in other if i not in goes}}


class TestCarving:
    @pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 11, 16, 21])
    @pytest.mark.parametrize("values", [4, 1000])
    def test_by_loops(self, tokens: int, values: int) -> None:
        draw = torch.Generator().manual_seed(tokens)
        points = torch.randint(0, values, (3, 32), generator=draw).float()
        rows = torch.randn(3, 32, 6, generator=draw)
        outcome = carving(points, rows, tokens)
        made = merged(rows, outcome)
        for i in range(3):
            expected = by_loops(points[i].tolist(), rows[i], tokens)
            assert outcome["index"][i].tolist() == sorted(expected)
            torch.testing.assert_close(made[i], torch.stack([expected[j] for j in sorted(expected)]))

    def test_the_fixture_of_twelve(self) -> None:
        stage = stage_of(12, 4)
        outcome = stage.rule({"last_attention": SEEN.unsqueeze(1), "states": TWELVE}, {})
        given = torch.linalg.svd(TWELVE[0].double(), full_matrices=False)
        worth = (given.U.abs() * given.S).sum(dim=1).tolist()
        seen = SEEN[0].tolist()
        points = [
            0.5 * sum(seen[j] >= other for other in seen) + 0.5 * sum(worth[j] >= other for other in worth)
            for j in range(12)
        ]
        expected = by_loops(points, TWELVE[0], 4)
        assert outcome["index"].tolist() == [sorted(expected)]
        torch.testing.assert_close(merged(TWELVE, outcome)[0], torch.stack([expected[j] for j in sorted(expected)]))

    def test_what_is_not_folded_into_is_the_same_bit_for_bit(self) -> None:
        draw = torch.Generator().manual_seed(0)
        rows = torch.randn(2, 32, 6, generator=draw)
        outcome = carving(torch.rand(2, 32, generator=draw), rows, 16)
        alone = outcome["own"] == 1
        assert alone.any() and not alone.all()
        assert torch.equal(merged(rows, outcome)[alone], choose.take(rows, outcome["index"])[alone])

    @pytest.mark.parametrize("heads", [1, 3])
    def test_weight_alone_decides_between_attention_and_contribution(self, heads: int) -> None:
        draw = torch.Generator().manual_seed(2)
        signals = {"last_attention": torch.rand(1, heads, 32, generator=draw), "states": torch.randn(1, 32, 6)}
        seen = signals["last_attention"].mean(dim=1)
        worth = TokenCarve().contributions(signals["states"])
        for weight, score in ((1.0, seen), (0.0, worth)):
            found = stage_of(32, 8, weight=weight).rule(signals, {})
            assert torch.equal(found["index"], carving(score, signals["states"], 8)["index"])

    def test_equal_tokens_go_by_index(self) -> None:
        signals = {"last_attention": torch.full((1, 2, 12), 0.1), "states": torch.ones(1, 12, 6)}
        assert stage_of(12, 4).rule(signals, {})["index"].tolist() == [[0, 1, 2, 5]]


class TestPlan:
    @pytest.mark.parametrize("tokens", [1, 2, 63, 64, 383, 384])
    def test_one_stage_of_that_count(self, tokens: int) -> None:
        stage = stage_of(576, tokens)
        assert (stage.site, stage.keep, stage.how, stage.positions) == (SITE, tokens, "merge", "original")

    def test_nothing_to_drop(self) -> None:
        assert TokenCarve().stages(golden_graphs().geometry, 576, None) == ()

    @pytest.mark.parametrize(("total", "tokens", "most"), [(576, 385, 384), (12, 9, 8), (64, 63, 43)])
    def test_a_count_that_leaves_none_to_fold_is_refused(self, total: int, tokens: int, most: int) -> None:
        with pytest.raises(MethodError, match=f"of {total} tokens it leaves at most {most}, and {tokens} were asked"):
            stage_of(total, tokens)
        assert stage_of(total, most).keep == most

    def test_a_layer_outside_the_model_is_refused(self) -> None:
        with pytest.raises(MethodError, match=re.escape("behind layers 0..30")):
            stage_of(576, 64, layer=32)

    def test_eigenvectors_are_not_exported(self) -> None:
        graphs = golden_graphs()
        module = rewrite(graphs, [stage_of(576, 64, contribution="eigh")]).graphs.language
        rows, start = torch.zeros(1, LENGTH, 64), torch.full((1,), START)
        inputs = (rows, torch.arange(LENGTH).unsqueeze(0), torch.full((1,), LENGTH), start)
        with pytest.raises(ExportError, match="contribution=eigh of tokencarve has no form in ONNX; choose singular"):
            lower(module, inputs, input_names=("a", "b", "c", "d"), output_names=("logits",))
