"""SparseVLM 1.5 and plus against the authors' runs, its raters and heads by hand, its counts, and what it refuses."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from goldens_support import IMAGES, Recorded, carved, check_read, golden_graphs, golden_inputs, inside
from torch import Tensor
from twelve import TWELVE

from tokcarve.passes.errors import MethodError
from tokcarve.passes.flops import rows_of
from tokcarve.passes.methods.sparsevlm import SparseVLM, raters
from tokcarve.passes.stage import Stage

LAYERS = (2, 6, 15)
START, LENGTH = 35, 623  # of the recorded prompts
# budget of the tables -> tokens behind the last cut, clusters included
LEFT = {"192": 113, "128": 39, "96": 27, "64": 18}
LEFT_PLUS = {"192": 118, "128": 60, "96": 28, "64": 20}


@pytest.fixture(scope="module")
def golden() -> Recorded:
    """The runs of 1.5, and for every layer `index_l`: the patch each token stands for, a cluster for its centre."""
    golden = Recorded("sparsevlm")
    for image in IMAGES:
        for budget in LEFT:
            patches = torch.arange(576)
            for layer in LAYERS:
                kept, recycled, centres = (
                    torch.from_numpy(golden.get(image, budget, f"{name}_l{layer}")).long()
                    for name in ("kept_pos", "recycled_pos", "centres")
                )
                # where all tokens are in one cluster, every centre gives it; ours is the first
                centres = centres if len(centres) > 1 else torch.zeros_like(centres)
                patches = patches[torch.cat([kept, recycled[centres]])]
                golden.arrays[f"img{image}/{budget}/index_l{layer}"] = patches.numpy()
    return golden


@pytest.fixture(scope="module")
def plus() -> Recorded:
    return Recorded("sparsevlm_plus")


def sites(name: str) -> dict[str, str]:
    return {f"language.layers.{layer}": f"{name}_l{layer}" for layer in LAYERS}


def differs(method: SparseVLM, tokens: int, golden: Recorded, budget: str) -> None:
    with pytest.raises(AssertionError):
        check_read(carved(method, tokens), golden, budget, {})


class TestRecorded:
    @pytest.mark.parametrize("budget", LEFT)
    def test_the_runs(self, golden: Recorded, budget: str) -> None:
        assert all(golden.trusted(image, budget) for image in IMAGES)
        check_read(carved(SparseVLM(), LEFT[budget]), golden, budget, sites("index"))

    @pytest.mark.parametrize("budget", LEFT)
    def test_clusters_and_positions(self, golden: Recorded, budget: str) -> None:
        found = inside(carved(SparseVLM(), LEFT[budget]))
        for layer in LAYERS:
            made, outcome = found[f"select_merge_t{layer}"], found[f"select_rule_t{layer}"]
            assert torch.equal(outcome["sources"], golden.stack(budget, f"recycled_pos_l{layer}").long())
            expected = golden.stack(budget, f"cluster_tokens_l{layer}")
            end = START + outcome["own"].shape[1]
            torch.testing.assert_close(made[:, end - expected.shape[1] : end], expected, atol=5e-4, rtol=0)
            positions = golden.stack(budget, f"position_ids_l{layer + 1}").long()
            assert torch.equal(found[f"select_positions_t{layer}"], positions)
            for image in IMAGES:
                joined = outcome["weights"][image, -expected.shape[1] :].argmax(dim=0)
                assert joined.tolist() == golden.get(image, budget, f"assign_l{layer}").tolist()

    @pytest.mark.parametrize("budget", LEFT_PLUS)
    def test_the_runs_of_plus(self, plus: Recorded, budget: str) -> None:
        assert all(plus.trusted(image, budget) for image in IMAGES)
        check_read(carved(SparseVLM(version="plus"), LEFT_PLUS[budget]), plus, budget, sites("kept_ids"))

    @pytest.mark.parametrize("budget", LEFT_PLUS)
    def test_scores_and_positions_of_plus(self, plus: Recorded, budget: str) -> None:
        found = inside(carved(SparseVLM(version="plus"), LEFT_PLUS[budget]))
        for layer in LAYERS:
            score = plus.stack(budget, f"score_l{layer}")
            torch.testing.assert_close(found[f"select_rule_t{layer}"]["score"], score, atol=1e-6, rtol=1e-3)
            positions = found[f"select_positions_t{layer}"]
            assert torch.equal(positions, plus.stack(budget, f"position_ids_l{layer + 1}").long())
            assert (positions[:, 1:] > positions[:, :-1]).all()

    def test_a_neighbour_is_not_the_recorded_run(self, golden: Recorded, plus: Recorded) -> None:
        differs(SparseVLM(), 19, golden, "64")
        differs(SparseVLM(layers=(2, 6, 14)), 18, golden, "64")
        differs(SparseVLM(version="plus"), 21, plus, "64")
        differs(SparseVLM(version="plus", heads=3), 20, plus, "64")

    def test_text_and_what_is_kept_pass_unchanged(self, golden: Recorded) -> None:
        found = inside(carved(SparseVLM(), 113))
        before, made, kept = found["layers.2"][0], found["select_merge_t2"], found["select_rule_t2"]["index"][:, :300]
        assert torch.equal(made[:, :START], before[:, :START])
        assert torch.equal(made[:, START + 309 :], before[:, START + 576 :])
        rows = torch.gather(before, 1, (START + kept).unsqueeze(2).expand(-1, -1, 64))
        assert torch.equal(made[:, START : START + 300], rows)

    def test_the_raters(self, golden: Recorded) -> None:
        graphs, (pixels, ids) = golden_graphs(), golden_inputs()
        with torch.no_grad():
            rows, _ = graphs.embedding(ids, graphs.see(pixels).features)
        found = raters(rows[:, START : START + 576], rows[:, START + 576 :], torch.ones(4, 12))
        for image in IMAGES:
            assert found[image].nonzero().flatten().tolist() == golden.get(image, "64", "raters").tolist()
            above = golden.get(image, "64", "rater_score")
            assert found[image].tolist() == (above > above.mean()).tolist()


class TestRaters:
    words = torch.stack([torch.sin(0.4 * q * torch.arange(1.0, 7)) for q in range(1, 6)]).unsqueeze(0)

    def test_the_fixture_of_twelve(self) -> None:
        share = torch.softmax(TWELVE @ self.words.transpose(1, 2), dim=2).mean(dim=1)
        expected = torch.tensor([[0.126809, 0.25426, 0.203141, 0.18725, 0.22854]])
        torch.testing.assert_close(share, expected, atol=1e-6, rtol=0)
        assert raters(TWELVE, self.words, torch.ones(1, 5)).tolist() == [[0, 1, 1, 0, 1]]

    def test_places_without_a_word_count_for_nothing(self) -> None:
        padded = torch.cat([self.words, torch.zeros(1, 3, 6)], dim=1)
        asked = torch.tensor([[1.0] * 5 + [0.0] * 3])
        assert raters(TWELVE, padded, asked).tolist() == [[0, 1, 1, 0, 1, 0, 0, 0]]
        # the first token is for the first word, 0.73; the second is against both, less for the second, 0.88, and would
        # be for a place of zeros alone
        image, words = torch.tensor([[[10.0], [-20.0]]]), torch.tensor([[[1.0], [0.9], [0.0]]])
        assert raters(image, words, torch.tensor([[1.0, 1.0, 0.0]])).tolist() == [[0, 1, 0]]
        assert raters(image, words[:, :2], torch.ones(1, 2)).tolist() == [[0, 1]]

    def test_where_none_is_above_the_mean_all_rate(self) -> None:
        one = torch.tensor([[1.0, 0.0, 0.0]])
        assert raters(TWELVE, self.words[:, :3], one).tolist() == [[1, 0, 0]]
        assert raters(TWELVE, torch.zeros(1, 4, 6), torch.ones(1, 4)).tolist() == [[1, 1, 1, 1]]
        assert raters(TWELVE, self.words[:, :3], torch.zeros(1, 3)).tolist() == [[0, 0, 0]]


def stage_of(tokens: int = 8, **params: Any) -> Stage:
    """The first stage on a model of 12 tokens."""
    geometry = replace(golden_graphs().geometry, total=12)
    return SparseVLM(**params).stages(geometry, tokens, None)[0]


def signals(places: int = 5) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    seen = torch.softmax(2 * torch.randn(1, 4, places, 12, generator=draw), dim=3)
    return {
        "entered": TWELVE,
        "entered_text": TestRaters.words,
        "asked": torch.ones(1, places),
        "text_attention": seen,
        "text_gravity": torch.randn(1, places, 12, generator=draw),
        "states": TWELVE,
    }


class TestScores:
    def test_of_1_5_the_mean_over_raters_and_heads_keeps(self) -> None:
        given = signals()
        mean = given["text_attention"][0, :, [1, 2, 4]].mean(dim=(0, 1)).tolist()
        falling = sorted(range(12), key=lambda i: -mean[i])
        outcome = stage_of(8).rule(given, {})
        kept = outcome["index"].shape[1] - int((outcome["own"] == 0).sum())
        assert outcome["index"][0, :kept].tolist() == sorted(falling[:kept])
        assert outcome["sources"][0].tolist() == falling[kept : kept + outcome["sources"].shape[1]]

    @pytest.mark.parametrize("heads", [1, 2, 3, 4])
    def test_of_plus_by_loops(self, heads: int) -> None:
        given = signals()
        score = stage_of(8, version="plus", heads=heads).rule(given, {})["score"][0]
        corrected = [
            [sum(float(seen[t, i] / given["text_gravity"][0, t, i]) for t in (1, 2, 4)) / 3 for i in range(12)]
            for seen in given["text_attention"][0]
        ]
        loudest = sorted(corrected, key=sum)[-heads:]
        expected = torch.tensor([sum(column) / heads for column in zip(*loudest, strict=True)])
        torch.testing.assert_close(score, expected, atol=1e-5, rtol=1e-4)

    def test_no_pull_is_not_divided_by(self) -> None:
        given = {**signals(), "text_gravity": torch.zeros(1, 5, 12)}
        assert stage_of(8, version="plus").rule(given, {})["score"].isfinite().all()

    @pytest.mark.parametrize("version", ["v1.5", "plus"])
    def test_a_prompt_without_words_behind_the_image(self, version: str) -> None:
        given = {**signals(), "asked": torch.zeros(1, 5), "text_attention": torch.zeros(1, 4, 5, 12)}
        outcome = stage_of(8, version=version).rule(given, {})
        assert all(value.isfinite().all() for value in outcome.values())


class TestCounts:
    @pytest.mark.parametrize(
        ("tokens", "kept", "left"),
        [
            (113, [300, 200, 110], [309, 204, 113]),
            (39, [303, 110, 36], [312, 117, 39]),
            (27, [238, 48, 26], [249, 55, 27]),
            (18, [66, 30, 17], [82, 32, 18]),
            # between lists on straight lines: (238 + 303) / 2 of layer 2, halfway from 27 to 39 tokens
            (33, [270, 79, 31], [280, 86, 33]),
            (9, [33, 15, 8], [50, 17, 9]),
            (1, [4, 2, 0], [22, 3, 1]),
            (575, [575, 575, 574], [576, 576, 575]),
        ],
    )
    def test_of_1_5(self, tokens: int, kept: list[int], left: list[int]) -> None:
        cuts = SparseVLM().cuts(576, tokens)
        assert ([cut[1] for cut in cuts], [cut[2] for cut in cuts]) == (kept, left)
        stages = SparseVLM().stages(golden_graphs().geometry, tokens, None)
        assert [stage.keep for stage in stages] == [n for n in left if n < 576]

    @pytest.mark.parametrize(
        ("tokens", "kept"),
        [(118, [300, 200, 118]), (60, [238, 108, 60]), (28, [246, 54, 28]), (20, [66, 34, 20]), (44, [242, 81, 44])],
    )
    def test_of_plus(self, tokens: int, kept: list[int]) -> None:
        assert [cut[1:] for cut in SparseVLM(version="plus").cuts(576, tokens)] == [(n, n) for n in kept]

    @pytest.mark.parametrize(("tokens", "mean"), [(113, 206.5), (39, 145.4), (27, 114.1), (18, 82.3)])
    def test_what_the_layers_process(self, tokens: int, mean: float) -> None:
        geometry = golden_graphs().geometry
        rows = rows_of(geometry, SparseVLM().stages(geometry, tokens, None), 0).text
        assert sum(rows) / 32 == pytest.approx(mean, abs=0.05)

    @pytest.mark.parametrize("version", ["v1.5", "plus"])
    @pytest.mark.parametrize("total", [2, 7, 64, 576, 2880])
    def test_every_count_is_reached(self, version: Any, total: int) -> None:
        for tokens in range(1, total):
            cuts = SparseVLM(version=version).cuts(total, tokens)
            before = [total, *(left for _, _, left in cuts)]
            assert before[-1] == tokens and before == sorted(before, reverse=True)
            assert all(count == before[i] and 0 <= kept <= left for i, (count, kept, left) in enumerate(cuts))

    def test_other_totals_scale(self) -> None:
        cuts = SparseVLM(version="plus").cuts(2880, 590)
        assert [cut[2] for cut in cuts] == [1500, 1000, 590]


class TestRefusals:
    def test_other_than_three_layers(self) -> None:
        with pytest.raises(MethodError, match=r"layers=\(2, 6\) names 2.*have three; name three"):
            SparseVLM(layers=(2, 6)).stages(golden_graphs().geometry, 18, None)

    @pytest.mark.parametrize("heads", [0, 5])
    def test_heads_the_model_does_not_have(self, heads: int) -> None:
        with pytest.raises(MethodError, match=rf"heads={heads} of the 4.*choose 1\.\.4"):
            SparseVLM(version="plus", heads=heads).stages(golden_graphs().geometry, 18, None)

    def test_more_clusters_than_tokens(self) -> None:
        with pytest.raises(MethodError, match="clusters alone are more than the 1 of 100000 tokens"):
            SparseVLM().cuts(100_000, 1)
