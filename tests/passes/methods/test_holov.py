"""HoloV: the cases worked by hand, both rankings against plain loops, the recorded cuts, and what it refuses."""

import math

import pytest
import torch
from goldens_support import IMAGES, Recorded, carved, golden_inputs
from hypothesis import assume, given
from hypothesis import strategies as st
from models import TOTAL, build, config, pictures
from torch import Tensor
from watcher import Watcher

from tokcarve.passes import families
from tokcarve.passes.choose import rank, top_in_order
from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.insert import rewrite
from tokcarve.passes.methods.holov import HoloV, bands, holistic, quotas, spread
from tokcarve.passes.methods.vtc_cls import VtcCls

PLAIN = ("192_C5", "192_C16", "128_C8", "64_C16", "32_C32")
CUBED = ("192_C16_pow3", "128_C8_pow3")


@pytest.fixture(scope="module")
def graphs() -> TokenGraphs:
    return families.capture(build())


def clip_l() -> Geometry:
    made = config(vision_layers=24)
    made.vision_config.image_size = 336
    return families.geometry(made)


def band_of(total: int, crops: int) -> Tensor:
    return torch.tensor(bands(total, crops))


def due(attention: Tensor, crops: int, keep: int) -> Tensor:
    return quotas(attention, band_of(attention.shape[1], crops), crops, keep)


def kept(attention: Tensor, score: Tensor, crops: int, keep: int) -> Tensor:
    band = band_of(attention.shape[1], crops)
    return top_in_order(spread(attention, score, band, crops=crops, keep=keep, bonus=10.0), keep)


def by_loops(attention: list[float], score: list[float], crops: int, keep: int) -> list[int]:
    """The same cut, one band after the other."""
    band = bands(len(score), crops)
    inside = [[i for i, b in enumerate(band) if b == c] for c in range(crops)]
    means = [sum(attention[i] for i in ids) / len(ids) for ids in inside]
    quota = [math.floor(mean / sum(means) * keep + 1e-9) for mean in means]
    for c in sorted(range(crops), key=lambda c: (-means[c], c))[: keep - sum(quota)]:
        quota[c] += 1
    falling = sorted(range(len(score)), key=lambda i: (-score[i], i))
    found = [i for c in range(crops) for i in [i for i in falling if band[i] == c][: quota[c]]]
    return sorted(found + [i for i in falling if i not in found][: keep - len(found)])


class TestByHand:
    attention = torch.tensor([[0.05, 0.20, 0.10, 0.05, 0.30, 0.10, 0.15, 0.05]])
    peaked = torch.tensor([[0.01, 0.01, 0.01, 0.01, 0.46, 0.2, 0.2, 0.1]])

    def test_two_bands(self) -> None:
        assert due(self.attention, 2, 4).tolist() == [[1, 3]]
        assert kept(self.attention, self.attention, 2, 4).tolist() == [[1, 4, 5, 6]]

    def test_a_quota_beyond_its_band_is_filled_up(self) -> None:
        assert due(self.peaked, 2, 6).tolist() == [[0, 6]]
        assert kept(self.peaked, self.peaked, 2, 6).tolist() == [[0, 1, 4, 5, 6, 7]]

    @pytest.mark.parametrize(("total", "crops", "sizes"), [(576, 5, [116, 115, 115, 115, 115]), (8, 3, [3, 3, 2])])
    def test_the_first_bands_are_longer(self, total: int, crops: int, sizes: list[int]) -> None:
        assert torch.bincount(band_of(total, crops)).tolist() == sizes
        assert bands(total, crops) == sorted(bands(total, crops))

    def test_who_comes_before_whom(self) -> None:
        score = torch.tensor([[3.0, 5.0, 3.0, 1.0]])
        assert rank(score).tolist() == [[1, 0, 2, 3]]
        band = torch.tensor([0, 0, 1, 1])
        assert rank(score, band == band.unsqueeze(1)).tolist() == [[1, 0, 0, 1]]

    @pytest.mark.parametrize(("keep", "crops"), [(192, 5), (128, 8), (64, 16), (320, 3), (58, 17), (32, 32), (575, 1)])
    def test_how_many_bands(self, keep: int, crops: int) -> None:
        """floor(1024 / count) on 576 tokens."""
        (stage,) = HoloV().stages(clip_l(), keep, None)
        attention = torch.rand(1, 1, 577, generator=torch.Generator().manual_seed(0))
        score = stage.rule({"cls_attention": attention}, {})["score"]
        expected = kept(attention[0, :, 1:], attention[0, :, 1:], crops, keep)
        assert torch.equal(top_in_order(score, keep), expected)


@given(st.integers(0, 2**31), st.integers(1, 39), st.integers(1, 40))
def test_it_is_the_cut_by_loops(seed: int, keep: int, crops: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # multiples of 1/16, so that sums are exact and ties are in plenty
    attention, score = torch.randint(1, 33, (2, 3, 40), generator=generator) / 16
    assert (due(attention, crops, keep).sum(dim=1) == keep).all()
    share = attention.double() @ torch.nn.functional.one_hot(band_of(40, crops)).double()
    share = share / torch.bincount(band_of(40, crops))
    share = share / share.sum(dim=1, keepdim=True) * keep
    # elsewhere rounding decides on which side of an integer a share falls
    assume(crops == 1 or ((share - share.round()).abs() > 1e-4).all())
    found = kept(attention, score, crops, keep)
    for i in range(3):
        assert found[i].tolist() == by_loops(attention[i].tolist(), score[i].tolist(), crops, keep)


def test_scale_does_not_matter_and_equal_attention_gives_equal_quotas() -> None:
    attention = torch.rand(2, 576, generator=torch.Generator().manual_seed(0)) / 576
    for crops, keep in ((5, 192), (16, 64), (32, 32)):
        assert torch.equal(kept(attention, attention, crops, keep), kept(64 * attention, 64 * attention, crops, keep))
        even = due(torch.full((1, 576), 0.001), crops, keep)
        assert even.max() - even.min() <= 1 and even.sum() == keep
    assert due(torch.zeros(1, 8), 2, 4).isfinite().all(), "[CLS] may keep all attention to itself"


def loops_h(attention: Tensor, tokens: Tensor, crops: int, alpha: float) -> Tensor:
    """H of every token in float64, band by band: attention plus alpha times the scaled variance."""
    unit = torch.nn.functional.normalize(tokens.double(), dim=-1)
    made = []
    for c in range(crops):
        ids = (band_of(len(attention), crops) == c).nonzero().flatten()
        alike = (unit[ids] @ unit[ids].T).fill_diagonal_(0)
        mean = alike.sum(1, keepdim=True) / (len(ids) - 1)
        variance = (alike - mean).square().sum(1) / (len(ids) - 1)
        gamma = attention[ids].double().mean() / variance.mean()
        made.append(attention[ids].double() + alpha * gamma * variance)
    return torch.cat(made)


class TestHolistic:
    generator = torch.Generator().manual_seed(3)
    attention = torch.softmax(torch.randn(2, 40, generator=generator), dim=1)
    tokens = torch.randn(2, 40, 6, generator=generator) + 1

    @pytest.mark.parametrize("alpha", [0.0, 0.09, 1.0, 5.0])
    @pytest.mark.parametrize("crops", [1, 3, 8])
    def test_h_is_that_of_the_loops(self, crops: int, alpha: float) -> None:
        found = holistic(self.attention, self.tokens, band_of(40, crops), alpha)
        expected = torch.stack([loops_h(a, z, crops, alpha) for a, z in zip(self.attention, self.tokens, strict=True)])
        torch.testing.assert_close(found, expected.float(), atol=1e-6, rtol=1e-4)
        assert found.max() <= 1 + alpha

    @pytest.mark.parametrize("alpha", [0.09, 1.0, 5.0])
    def test_alpha_cancels_from_the_quotas(self, alpha: float) -> None:
        """The mean of H is 1 + alpha times the mean attention of the band, whatever the tokens are."""
        for crops in (1, 3, 8):
            weighty = holistic(self.attention, self.tokens, band_of(40, crops), alpha)
            assert torch.equal(due(weighty, crops, 13), due(self.attention, crops, 13))

    def test_bands_of_one_token_and_equal_tokens_stay_finite(self) -> None:
        alone = holistic(self.attention, self.tokens, band_of(40, 40), 1.0)
        assert torch.equal(alone, self.attention)
        for tokens in (torch.ones_like(self.tokens), torch.zeros_like(self.tokens)):
            assert holistic(self.attention, tokens, band_of(40, 3), 1.0).isfinite().all()

    def test_in_the_tower(self, graphs: TokenGraphs) -> None:
        """Attention of the last vision layer, similarity of what the connector gives."""
        method = HoloV(rank_by="holistic", crops=4, alpha=1.0)
        watcher = Watcher(rewrite(graphs, method.stages(graphs.geometry, 16, None)).graphs.vision)
        with torch.no_grad():
            whole, _ = graphs.vision(pictures(2))
            features, found = watcher.run(pictures(2))
        attention = watcher.seen["select_cls_attention_l4"].mean(dim=1)[:, 1:]
        h = torch.stack([loops_h(a, z, 4, 1.0) for a, z in zip(attention, whole, strict=True)]).float()
        assert torch.equal(found["connector"], kept(attention, h, 4, 16))
        torch.testing.assert_close(features, torch.gather(whole, 1, found["connector"].unsqueeze(2).expand(-1, -1, 48)))


def test_every_parameter_matters_where_it_should(graphs: TokenGraphs) -> None:
    def found(**parameters: object) -> Tensor:
        stages = HoloV(**parameters).stages(graphs.geometry, 16, None)  # type: ignore[arg-type]
        with torch.no_grad():
            return list(rewrite(graphs, stages).graphs.vision(pictures(2))[1].values())[-1]

    assert torch.equal(found(crops=4), found(crops=4, alpha=5.0)), "as released, alpha does nothing"
    assert torch.equal(found(crops=4), found(crops=4, rank_by="holistic", alpha=0.0))
    assert not torch.equal(found(crops=4), found(crops=4, rank_by="holistic", alpha=1.0))
    assert not torch.equal(found(crops=4, rank_by="holistic"), found(crops=4, rank_by="holistic", alpha=5.0))
    assert not torch.equal(found(crops=4), found(crops=8))
    assert torch.equal(found(), found(crops=7))


@pytest.mark.parametrize("crops", [0, -1, 65])
def test_bands_that_do_not_fit_are_refused(graphs: TokenGraphs, crops: int) -> None:
    with pytest.raises(MethodError, match=f"crops={crops} of holov does not fit 64 tokens; choose 1..64"):
        HoloV(crops=crops).stages(graphs.geometry, 16, None)
    assert all(len(HoloV().stages(graphs.geometry, tokens, None)) == 1 for tokens in range(1, TOTAL))


@pytest.mark.parametrize("method", [HoloV(), HoloV(rank_by="holistic")])
def test_a_tower_without_cls_is_refused(method: HoloV) -> None:
    graphs = families.capture(build("llama", "siglip"))
    with pytest.raises(MethodError, match=r"this siglip tower has no \[CLS\] token"):
        rewrite(graphs, method.stages(graphs.geometry, 16, None))


@pytest.fixture(scope="module")
def golden() -> Recorded:
    return Recorded("holov")


def size(budget: str) -> tuple[int, int]:
    keep, crops = budget.split("_")[:2]
    return int(keep), int(crops[1:])


def check_kept(found: Tensor, attention: Tensor, golden: Recorded, image: int, budget: str) -> Tensor:
    """Everything recorded is kept, and zero rows became the best of the rest; -> places of recorded ids by order."""
    recorded = torch.from_numpy(golden.get(image, budget, "kept")).long()
    real, zeros = recorded[recorded >= 0], int(golden.get(image, budget, "n_zero_rows"))
    rest = attention.clone()
    rest[real] = -1
    expected = set(real.tolist()) | (set(top_in_order(rest.unsqueeze(0), zeros)[0].tolist()) if zeros else set())
    assert set(found.tolist()) == expected and len(real) + zeros == len(found)
    return torch.searchsorted(found, real)


@pytest.mark.parametrize("budget", PLAIN)
def test_it_keeps_what_its_authors_code_keeps(golden: Recorded, budget: str) -> None:
    assert all(golden.trusted(i, budget) for i in IMAGES), "the recorded cuts have no near ties"
    keep, crops = size(budget)
    method = HoloV() if crops == 1024 // keep else HoloV(crops=crops)
    watcher = Watcher(carved(method, keep).graphs.vision)
    with torch.no_grad():
        features, found = watcher.run(golden_inputs()[0])
    attention = watcher.seen["select_cls_attention_l22"].mean(dim=1)[:, 1:]
    torch.testing.assert_close(attention, golden.stack(budget, "attn"), atol=1e-6, rtol=1e-4)
    for i in IMAGES:
        order = check_kept(found["vision.layers.22"][i], attention[i], golden, i, budget)
        recorded = torch.from_numpy(golden.get(i, budget, "feat"))
        torch.testing.assert_close(features[i, order], recorded[: len(order)], atol=5e-4, rtol=0)
        assert not recorded[len(order) :].any()


@pytest.mark.parametrize("budget", PLAIN + CUBED)
def test_the_recorded_attention_gives_the_recorded_quotas(golden: Recorded, budget: str) -> None:
    """Cubed attention forces bands to overflow."""
    assert all(golden.trusted(i, budget) for i in IMAGES)
    keep, crops = size(budget)
    attention, room = golden.stack(budget, "attn"), torch.bincount(band_of(576, crops))
    assert torch.equal(torch.minimum(due(attention, crops, keep), room), golden.stack(budget, "quota").float())
    assert golden.get(0, budget, "crop_start").tolist() == [0, *torch.cumsum(room, 0).tolist()]
    found = kept(attention, attention, crops, keep)
    for i in IMAGES:
        check_kept(found[i], attention[i], golden, i, budget)


def test_the_comparison_has_power(golden: Recorded) -> None:
    recorded = [set(golden.get(i, "128_C8", "kept").tolist()) for i in IMAGES]
    for method in (HoloV(crops=9), HoloV(rank_by="holistic", alpha=1.0), VtcCls(layers=1)):
        with torch.no_grad():
            _, found = carved(method, 128).graphs.vision(golden_inputs()[0])
        assert all(set(row.tolist()) != recorded[i] for i, row in enumerate(list(found.values())[-1])), method
    assert sum(int(golden.get(i, b, "n_zero_rows")) > 0 for i in IMAGES for b in PLAIN + CUBED) == 10
