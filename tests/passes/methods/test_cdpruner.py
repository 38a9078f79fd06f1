"""CDPruner: recorded orders and gains by hand, determinants, kernels of low rank, the question, and what it refuses."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import TOTAL, build, pictures, prompt
from torch import Tensor
from twelve import TEXT, TWELVE
from watcher import Watcher

from tokcarve.passes import families
from tokcarve.passes.choose import top_in_order, unit
from tokcarve.passes.errors import MethodError
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.greedy import volume
from tokcarve.passes.insert import rewrite
from tokcarve.passes.methods.cdpruner import CDPruner, keeping, relevance


@pytest.fixture(scope="module")
def graphs() -> TokenGraphs:
    return families.capture(build())


def cosine(tokens: Tensor, text: Tensor) -> Tensor:
    return (unit(tokens) @ unit(text).unsqueeze(2)).squeeze(2)


def gains(weight: Tensor, picked: Tensor, fresh: Tensor) -> Tensor:
    """What every pick multiplies the determinant by."""
    return torch.gather(weight, 1, picked) ** 2 * fresh


RECORDED = [
    (-1.0, [6, 0, 5, 3, 9], [1.000001, 0.471261, 0.250013, 0.189173, 0.080579], -6.322189),
    (1.0, [10, 7, 4, 2, 1], [1.000001, 0.522661, 0.409175, 0.265009, 0.161065], -4.696371),
]


@pytest.mark.parametrize(("sign", "ids", "heights", "logdet"), RECORDED)
def test_twelve_rows(sign: float, ids: list[int], heights: list[float], logdet: float) -> None:
    weight = relevance(sign * cosine(TWELVE, TEXT))
    picked, fresh = volume(unit(TWELVE), weight, 5)
    assert picked.tolist() == [ids]
    made = gains(weight, picked, fresh)
    torch.testing.assert_close(made, torch.tensor([heights]), atol=3e-6, rtol=0)
    chosen = (weight.unsqueeze(2) * unit(TWELVE))[0, picked[0]].double()
    assert float(torch.logdet(chosen @ chosen.T)) == pytest.approx(logdet, abs=1e-4)
    assert float(made.log().sum()) == pytest.approx(logdet, abs=1e-4)


class TestRelevance:
    def test_by_hand(self) -> None:
        given_ = torch.tensor([[0.1, 0.5, 0.3], [0.2, 0.2, 0.2]])
        expected = torch.tensor([[0.0, 1.0, 0.5], [1.0, 1.0, 1.0]])
        torch.testing.assert_close(relevance(given_), expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(relevance(-given_)[0], 1 - expected[0], atol=1e-5, rtol=0)
        assert relevance(given_)[0, 0] > 0, "the least relevant token is not nothing"

    def test_theta_by_hand(self) -> None:
        # theta 0.75: alpha is 1.5; the most relevant token has 1
        made = relevance(torch.tensor([[0.1, 0.5, 0.3]]), theta=0.75)
        torch.testing.assert_close(made, torch.tensor([[math.exp(-1.5), 1.0, math.exp(-0.75)]]), atol=1e-5, rtol=0)

    def test_theta_near_one_stays_finite(self) -> None:
        made = relevance(torch.tensor([[0.1, 0.5, 0.3]]), theta=1 - 1e-9)
        assert made[0, 1] == 1 and (made > 0).all() and made.isfinite().all()

    def test_theta_of_zero_is_diversity_alone(self) -> None:
        even = relevance(cosine(TWELVE, TEXT), theta=0.0)
        assert torch.equal(even, torch.ones(1, 12))
        assert volume(unit(TWELVE), even, 5)[0].tolist() != [RECORDED[1][1]]

    def test_a_common_factor_changes_no_choice(self) -> None:
        weight = relevance(cosine(TWELVE, TEXT))
        assert torch.equal(volume(unit(TWELVE), 8 * weight, 6)[0], volume(unit(TWELVE), weight, 6)[0])

    def test_one_image_does_not_move_another(self) -> None:
        both = torch.tensor([[0.1, 0.5, 0.3], [-3.0, 7.0, 2.0]])
        torch.testing.assert_close(relevance(both), torch.cat([relevance(both[:1]), relevance(both[1:])]))


@given(st.integers(0, 10_000), st.integers(1, 8))
def test_every_pick_adds_the_most(seed: int, count: int) -> None:
    """Against determinants taken anew in float64."""
    generator = torch.Generator().manual_seed(seed)
    units, weight = unit(torch.randn(2, 9, 12, generator=generator)), 0.1 + torch.rand(2, 9, generator=generator)
    picked, fresh = volume(units, weight, count)
    made = gains(weight, picked, fresh)
    for image in range(2):
        rows, ids = (weight[image].unsqueeze(1) * units[image]).double(), picked[image].tolist()
        assert len(set(ids)) == count
        for done in range(count):
            dets = {i: _det(rows[[*ids[:done], i]]) for i in range(9) if i not in ids[:done]}
            assert dets[ids[done]] == pytest.approx(max(dets.values()), rel=1e-4)
        assert float(made[image].double().prod()) == pytest.approx(_det(rows[ids]), rel=1e-3)


def _det(chosen: Tensor) -> float:
    return float(torch.det(chosen @ chosen.T))


class TestLowRank:
    def test_one_direction_then_by_relevance(self) -> None:
        relevant = torch.rand(2, 40, generator=torch.Generator().manual_seed(4)) + 0.01
        picked, fresh = volume(torch.tensor([0.6, 0.8]).expand(2, 40, 2), relevant, 16)
        score = keeping(relevant, picked, fresh)
        assert torch.equal(top_in_order(score, 16), top_in_order(relevant, 16))
        assert (score > 2).sum(dim=1).tolist() == [1, 1], "one token holds the whole volume"
        assert score.isfinite().all()

    def test_two_directions_come_first(self) -> None:
        units = torch.tensor([[[1.0, 0.0]] * 5 + [[0.0, 1.0]] * 3])
        relevant = torch.tensor([[0.5, 0.9, 1.0, 0.8, 0.7, 0.1, 0.3, 0.2]])
        picked, fresh = volume(units, relevant, 5)
        assert picked[0, :2].tolist() == [2, 6]
        assert top_in_order(keeping(relevant, picked, fresh), 5).tolist() == [[1, 2, 3, 4, 6]]

    def test_a_small_angle_is_no_new_direction(self) -> None:
        for degrees, real in ((0.5, 1), (2.0, 2)):
            angle = torch.deg2rad(torch.tensor([0.0, degrees]))
            units = torch.stack([angle.cos(), angle.sin()], dim=1).unsqueeze(0)
            relevant = torch.tensor([[1.0, 0.5]])
            assert int((keeping(relevant, *volume(units, relevant, 2)) > 2).sum()) == real

    def test_a_hundred_picks_beyond_the_rank_stay_finite(self) -> None:
        units = unit(torch.randn(2, 200, 8, generator=torch.Generator().manual_seed(5)))
        picked, fresh = volume(units, torch.ones(2, 200), 150)
        assert fresh.isfinite().all() and fresh[:, 8:].abs().max() < 1e-5
        assert all(len(set(ids)) == 150 for ids in picked.tolist())


def carve(graphs: TokenGraphs, tokens: int, theta: float | None = None) -> TokenGraphs:
    return rewrite(graphs, CDPruner(theta=theta).stages(graphs.geometry, tokens, None)).graphs


@torch.no_grad()
def kept(graphs: TokenGraphs, pixels: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
    return graphs.see(pixels, ids, lengths)[1]["connector"]


class TestInTheGraph:
    def test_the_first_token_is_the_most_like_the_question(self, graphs: TokenGraphs) -> None:
        pixels, (ids, lengths) = pictures(3), prompt([6, 9, 12], visual=1)
        watcher = Watcher(carve(graphs, 1).vision)
        with torch.no_grad():
            _, made = watcher.run(pixels, ids, lengths)
        near = cosine(watcher.seen["connector"], watcher.seen["select_text_connector"])
        assert made["connector"][:, 0].tolist() == near.argmax(dim=1).tolist()

    def test_another_question_keeps_other_tokens(self, graphs: TokenGraphs) -> None:
        pixels, carved = pictures(1), carve(graphs, 16)
        first, second = (kept(carved, pixels, *prompt([9], visual=1, seed=seed)) for seed in (0, 1))
        assert not torch.equal(first, second)
        assert torch.equal(first, kept(carved, pixels, *prompt([9], visual=TOTAL, seed=0)))

    def test_relevance_counts_for_more_with_theta(self, graphs: TokenGraphs) -> None:
        pixels, (ids, lengths) = pictures(2), prompt([9, 9], visual=1)
        watcher = Watcher(carve(graphs, 16).vision)
        with torch.no_grad():
            watcher.run(pixels, ids, lengths)
        near = cosine(watcher.seen["connector"], watcher.seen["select_text_connector"])
        sums = [
            torch.gather(near, 1, kept(carve(graphs, 16, theta), pixels, ids, lengths)).sum()
            for theta in (0.0, 0.5, 0.99)
        ]
        assert sums[0] < sums[1] < sums[2]

    def test_one_question_on_equal_images(self, graphs: TokenGraphs) -> None:
        ids, lengths = prompt([9], visual=1)
        same = kept(carve(graphs, 16), torch.zeros(2, 3, 112, 112), ids.expand(2, -1), lengths.expand(2))
        assert torch.equal(same[0], same[1]) and len(set(same[0].tolist())) == 16


@pytest.mark.parametrize("theta", [-0.1, 1.0, 2.0, math.nan])
def test_a_theta_that_is_no_weight_is_refused(graphs: TokenGraphs, theta: float) -> None:
    with pytest.raises(MethodError, match=f"theta={theta} of cdpruner .* choose 0 to below 1"):
        CDPruner(theta=theta).stages(graphs.geometry, 10, None)
