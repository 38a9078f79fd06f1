"""DART against a port's recorded runs, hand cases, loops, and what it refuses."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from goldens_support import IMAGES, Recorded, carved, golden_graphs, inside
from torch import Tensor
from twelve import TWELVE

from tokcarve.passes.choose import one_hot, take, top_in_order
from tokcarve.passes.errors import MethodError
from tokcarve.passes.methods.dart import DART, least_alike, shares, text_turns
from tokcarve.passes.stage import Signals, Stage

START, TEXT = 35, 611  # the first row of the image, and the first behind it
BUDGETS = (192, 128, 64, 32)


@pytest.fixture(scope="module")
def golden() -> Recorded:
    return Recorded("dart_port")


@pytest.fixture(scope="module")
def read() -> dict[int, dict[str, Tensor]]:
    """What the rule is given on the recorded prompts, and the tokens it keeps, by layer; 132 tokens."""
    found = {}
    for layer in (2, 5):
        seen = inside(carved(DART(layer=layer), 132))
        names = ("visual_keys", "text_keys", "normed_states", "normed_text", "choose")
        found[layer] = {name: seen[f"select_{name}_t{layer - 1}"] for name in names}
    return found


def stage_of(tokens: int, total: int = 12, **params: Any) -> Stage:
    (stage,) = DART(**params).stages(replace(golden_graphs().geometry, total=total), tokens, None)
    return stage


def longest(keys: Tensor, count: int) -> list[int]:
    """The `count` columns of [heads, n, dim] with the largest L1 norms, all heads together, rising."""
    return sorted(keys.abs().sum(dim=(0, 2)).topk(count).indices.tolist())


def kept(pivots: Tensor, states: Tensor, first: list[int], quota: tuple[int, ...]) -> list[int]:
    """The tokens [n, hidden] kept by pivots [p, hidden] that take their turns in that order."""
    held = one_hot(torch.tensor([first]), states.shape[0]).sum(dim=1)
    return least_alike(pivots.unsqueeze(0), states.unsqueeze(0), held, quota)[0].nonzero().flatten().tolist()


class TestRecorded:
    @pytest.mark.parametrize("tokens", BUDGETS)
    @pytest.mark.parametrize("layer", [2, 5])
    def test_the_runs(self, golden: Recorded, read: dict[int, dict[str, Tensor]], tokens: int, layer: int) -> None:
        """The port's pivots took their turns in the order of a set; in that order the tokens kept are the same."""
        budget, given = f"{tokens}_K{layer}", read[layer]
        for i in IMAGES:
            assert golden.trusted(i, budget)
            norms = torch.from_numpy(golden.get(i, budget, "key_l1_visual"))
            torch.testing.assert_close(given["visual_keys"][i].abs().sum(dim=(0, 2)), norms, atol=0, rtol=1e-5)
            image = longest(given["visual_keys"][i], 4)
            assert image == sorted(golden.get(i, budget, "image_pivots").tolist())
            text = [TEXT + place for place in longest(given["text_keys"][i], 4)]
            assert text == sorted(golden.get(i, budget, "text_pivots_seq").tolist())
            order = golden.get(i, budget, "pivot_iteration_order_seq").tolist()
            assert sorted(order) == [START + patch for patch in image] + text
            rows = [
                given["normed_states"][i, row - START] if row < TEXT else given["normed_text"][i, row - TEXT]
                for row in order
            ]
            quota = (int(golden.get(i, budget, "quota")),) * 8
            expected = golden.get(i, budget, "kept").tolist()
            assert kept(torch.stack(rows), given["normed_states"][i], image, quota) == expected
            fewer = (*quota[1:], quota[0] - 1)
            assert kept(torch.stack(rows), given["normed_states"][i], image, fewer) != expected

    @pytest.mark.parametrize("layer", [2, 5])
    def test_the_graph_takes_turns_by_row(self, read: dict[int, dict[str, Tensor]], layer: int) -> None:
        given = read[layer]
        for i in IMAGES:
            image, text = longest(given["visual_keys"][i], 4), longest(given["text_keys"][i], 4)
            pivots = torch.cat([given["normed_states"][i, image], given["normed_text"][i, text]])
            assert given["choose"][i].tolist() == kept(pivots, given["normed_states"][i], image, (16,) * 8)

    def test_another_order_is_another_choice(self, read: dict[int, dict[str, Tensor]]) -> None:
        given = read[2]
        image, text = longest(given["visual_keys"][0], 4), longest(given["text_keys"][0], 4)
        pivots = torch.cat([given["normed_states"][0, image], given["normed_text"][0, text]])
        turned = kept(pivots.flip(0), given["normed_states"][0], image, (16,) * 8)
        assert given["choose"][0].tolist() != turned


def signals(places: int = 3, words: int | None = None) -> Signals:
    """Keys and states of twelve tokens; of the places for text, `words` hold some."""
    q, j = torch.arange(1.0, places + 1).unsqueeze(1), torch.arange(1.0, 7)
    text = 2 * torch.sin(0.4 * q * j).unsqueeze(0)
    if words is not None:
        text[:, words:] = 0
    return {
        "visual_keys": TWELVE.unsqueeze(1),
        "text_keys": text.unsqueeze(1),
        "normed_states": TWELVE,
        "normed_text": text,
    }


class TestChoice:
    def test_the_fixture_of_twelve(self) -> None:
        given = signals()
        score = stage_of(8, image_pivots=2, text_pivots=1).rule(given, {})["score"]
        assert top_in_order(score, 8).tolist() == [[0, 2, 3, 4, 7, 8, 9, 10]]
        pivots = torch.stack([TWELVE[0, 0], TWELVE[0, 3], given["normed_text"][0, 0]])
        for turns, expected in ((1, {7, 8}), (2, {7, 8, 2, 4}), (3, {7, 8, 2, 4, 9, 10})):
            assert set(kept(pivots[:turns], TWELVE[0], [0, 3], (2,) * turns)) == {0, 3} | expected

    def test_lengths_of_keys_and_states_do_not_matter(self) -> None:
        given = signals()
        stage = stage_of(7, image_pivots=2, text_pivots=2)
        scaled = {name: (3.0 if "keys" in name else 200.0) * value for name, value in given.items()}
        assert torch.equal(stage.rule(given, {})["score"], stage.rule(scaled, {})["score"])

    @pytest.mark.parametrize("tokens", [4, 5, 9, 12, 31])
    def test_by_loops(self, tokens: int) -> None:
        draw = torch.Generator().manual_seed(tokens)
        given: Signals = {
            "visual_keys": torch.randn(2, 3, 32, 4, generator=draw),
            "text_keys": torch.randn(2, 3, 7, 4, generator=draw),
            "normed_states": torch.randn(2, 32, 6, generator=draw),
            "normed_text": torch.randn(2, 7, 6, generator=draw),
        }
        score = stage_of(tokens, total=32, text_pivots=3).rule(given, {})["score"]
        for i in range(2):
            image, text = longest(given["visual_keys"][i], 4), longest(given["text_keys"][i], 3)
            pivots = [given["normed_states"][i, p] for p in image] + [given["normed_text"][i, p] for p in text]
            held, left = set(image), sorted(set(range(32)) - set(image))
            for turn, pivot in enumerate(pivots):
                count = (tokens - 4) // 7 + (turn < (tokens - 4) % 7)
                alike = {j: float(torch.cosine_similarity(given["normed_states"][i, j], pivot, dim=0)) for j in left}
                picked = sorted(left, key=lambda j: (alike[j], j))[:count]
                held, left = held | set(picked), [j for j in left if j not in picked]
            assert score[i].nonzero().flatten().tolist() == sorted(held)

    def test_equal_tokens_go_by_index(self) -> None:
        same = torch.ones(1, 12, 6)
        given = {**signals(), "visual_keys": same.unsqueeze(1), "normed_states": same}
        score = stage_of(8, image_pivots=2, text_pivots=1).rule(given, {})["score"]
        assert top_in_order(score, 8).tolist() == [list(range(8))]


class TestWords:
    def test_turns_go_by_row_and_the_strongest_word_takes_those_missing(self) -> None:
        norm = torch.tensor([[2.0, 5.0, 3.0, 0.0, 0.0], [1.0, 4.0, 3.0, 2.0, 2.0]])
        assert text_turns(norm, 4).tolist() == [[0, 1, 2, 1], [1, 2, 3, 4]]
        assert text_turns(norm[:, :2], 4).tolist() == [[0, 1, 1, 1], [0, 1, 1, 1]]
        assert text_turns(torch.zeros(1, 3), 2).tolist() == [[0, 0]]

    @pytest.mark.parametrize("words", [1, 2, 3])
    def test_places_without_a_word_change_nothing(self, words: int) -> None:
        stage = stage_of(9, text_pivots=4)
        bare = signals(words)
        padded = signals(words + 3, words)
        assert take(padded["normed_text"], torch.tensor([[words]])).abs().sum() == 0
        assert torch.equal(stage.rule(bare, {})["score"], stage.rule(padded, {})["score"])


class TestPlan:
    @pytest.mark.parametrize(
        ("count", "turns", "expected"), [(8, 4, (2,) * 4), (9, 4, (3, 2, 2, 2)), (2, 3, (1, 1, 0))]
    )
    def test_shares(self, count: int, turns: int, expected: tuple[int, ...]) -> None:
        assert shares(count, turns) == expected

    @pytest.mark.parametrize("tokens", [4, 64, 128, 192, 132, 575])
    def test_one_stage_of_that_count(self, tokens: int) -> None:
        stage = stage_of(tokens, total=576)
        assert (stage.site, stage.keep, stage.how, stage.positions) == (
            "language.layers.1",
            tokens,
            "choose",
            "original",
        )
        assert 4 + sum(shares(tokens - 4, 8)) == tokens

    def test_published_counts_are_four_and_eight_even_shares(self) -> None:
        assert [shares(tokens - 4, 8) for tokens in (196, 132, 68, 36)] == [(t,) * 8 for t in (24, 16, 8, 4)]

    def test_nothing_to_drop(self) -> None:
        assert DART().stages(golden_graphs().geometry, 576, None) == ()

    def test_fewer_tokens_than_pivots_are_refused(self) -> None:
        with pytest.raises(MethodError, match="4 image pivots, and 3 tokens.*choose image_pivots=1..3"):
            stage_of(3)
        assert stage_of(3, image_pivots=3).keep == 3

    def test_a_layer_outside_the_model_is_refused(self) -> None:
        with pytest.raises(MethodError, match="behind layers 0..30"):
            stage_of(8, layer=32)
