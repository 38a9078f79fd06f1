"""FlowCut: its arithmetic by hand and by the recorded step, its three forms, its counts."""

import math
from pathlib import Path
from typing import Literal

import pytest
import torch
from models import TOTAL, build, config, pictures
from torch import Tensor
from transformers import LlavaConfig
from watcher import Watcher

from tokcarve.passes import families
from tokcarve.passes.calibrate import observe
from tokcarve.passes.choose import alive_after, order, top_in_order
from tokcarve.passes.errors import MethodError
from tokcarve.passes.flow import drop_count, entropy_ratio, shares
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.insert import rewrite
from tokcarve.passes.methods.flowcut import FlowCut
from tokcarve.passes.stage import Frozen, Outcome, Signals

GOLDENS = Path(__file__).parents[2] / "goldens"


@pytest.fixture(scope="module")
def graphs() -> TokenGraphs:
    return families.capture(build())


@pytest.fixture(scope="module")
def clip_l() -> Geometry:
    """24 layers, 576 patches, features after layer 22: LLaVA-1.5."""
    return families.geometry(LlavaConfig.from_pretrained(GOLDENS / "model"))


def test_the_score_by_hand() -> None:
    # one head; [CLS] looks at itself with 0.4; its value is 0, so it is equally similar to all
    attention = torch.tensor([[[0.4, 0.3, 0.2, 0.1]]])
    values = torch.tensor([[[[0.0, 0.0], [1.0, -1.0], [2.0, 0.0], [0.0, 4.0]]]])
    seen, score = shares(attention, values)
    # attention shares 1/2, 1/3, 1/6; similarity shares 1/3 each; L1 norms 2, 2, 4
    torch.testing.assert_close(seen, torch.tensor([[1 / 2, 1 / 3, 1 / 6]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(score, torch.tensor([[5 / 3, 4 / 3, 2.0]]), atol=1e-6, rtol=0)


def test_the_similarity_by_hand() -> None:
    # dot products with the [CLS] value (1, 0), unscaled: itself 1, patches 0 and ln 3; [CLS] takes its part and goes
    attention = torch.tensor([[[0.0, 0.5, 0.5]]])
    values = torch.tensor([[[[1.0, 0.0], [0.0, 1.0], [math.log(3), 0.0]]]])
    _, score = shares(attention, values)
    expected = torch.tensor([[(1 / 2 + 1 / 4) * 1.0, (1 / 2 + 3 / 4) * math.log(3)]])
    torch.testing.assert_close(score, expected, atol=1e-6, rtol=0)


def test_the_norm_is_that_of_the_mean_over_heads() -> None:
    # the second patch has opposite values in its two heads: nothing is left of them
    attention = torch.full((1, 2, 3), 1 / 3)
    values = torch.tensor([[[[0.0], [3.0], [5.0]], [[0.0], [1.0], [-5.0]]]])
    _, score = shares(attention, values)
    torch.testing.assert_close(score, torch.tensor([[1.0 * 2.0, 0.0]]), atol=1e-6, rtol=0)


def test_a_cls_token_that_sees_only_itself_gives_scores_of_zero() -> None:
    attention = torch.tensor([[[1.0, 0.0, 0.0]]])
    values = torch.tensor([[[[20.0, 0.0], [0.0, 1.0], [0.0, 2.0]]]])
    seen, score = shares(attention, values)
    assert seen.tolist() == [[0, 0]] and score.tolist() == [[0, 0]]
    assert entropy_ratio(seen, torch.tensor([2.0])).tolist() == [0]


def test_dead_patches_count_for_nothing() -> None:
    generator = torch.Generator().manual_seed(2)
    values = torch.randn(2, 3, 8, 4, generator=generator)
    logits = torch.randn(2, 3, 8, generator=generator)
    alive = torch.tensor([[True, True, False, True, False, True, True]] * 2)
    rows = torch.cat([torch.ones(2, 1, dtype=torch.bool), alive], dim=1)
    attention = torch.softmax(torch.where(rows[:, None], logits, -torch.inf), dim=-1)
    seen, score = shares(attention, values, alive)
    left = rows[0]
    alone, expected = shares(attention[..., left], values[:, :, left])
    torch.testing.assert_close(seen[:, alive[0]], alone, atol=1e-6, rtol=0)
    torch.testing.assert_close(score[:, alive[0]], expected, atol=1e-6, rtol=0)
    assert (seen[:, ~alive[0]] == 0).all()
    counts = torch.tensor([5.0, 5.0])
    torch.testing.assert_close(entropy_ratio(seen, counts), entropy_ratio(alone, counts), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("shares_of", "ratio"),
    [([0.25] * 4, 1.0), ([1.0, 0.0, 0.0, 0.0], 0.0), ([0.5, 0.5, 0.0, 0.0], 0.5), ([1.0], 0.0)],
)
def test_entropy_over_its_maximum(shares_of: list[float], ratio: float) -> None:
    count = torch.tensor([float(len(shares_of))])
    found = entropy_ratio(torch.tensor([shares_of]), count)
    torch.testing.assert_close(found, torch.tensor([ratio]), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("count", "remaining", "ratio", "dropped"),
    [
        (576, 4, 0.0, 256),  # (576 - 64) / 2
        (576, 4, 1.0, 0),
        (576, 1, 0.5, 384),
        (69, 4, 0.0, 2),  # 2.5 goes to the even number
        (71, 4, 0.0, 4),  # 3.5
        (64, 9, 0.3, 0),
    ],
)
def test_the_number_dropped(count: int, remaining: int, ratio: float, dropped: int) -> None:
    exact = torch.tensor([ratio], dtype=torch.float64)
    assert drop_count(torch.tensor([float(count)]), 64, remaining, exact).tolist() == [dropped]


class TestRecordedStep:
    """The step of the specification: attention, similarity and values are given functions, two layers, 576 patches."""

    def signals(self, t: int) -> Signals:
        i = torch.arange(576, dtype=torch.float64)
        seen = torch.exp((2 + 0.5 * t) * torch.sin(0.37 * i + t))
        similar = torch.exp(1.5 * torch.cos(0.11 * i + 0.3 * t))
        depth = torch.arange(64, dtype=torch.float64)
        values = torch.sin(0.05 * (i[:, None] + 1 + t) * (depth + 1))
        # one more channel gives the similarity: opposite in the two heads, so that their mean does not see it
        steer = torch.log(similar / similar.sum()).unsqueeze(1)
        heads = [torch.cat([values, sign * steer], dim=1) for sign in (1, -1)]
        cls = torch.zeros(2, 1, 65, dtype=torch.float64)
        cls[0, 0, 64], cls[1, 0, 64] = 1, -1
        row = torch.cat([torch.tensor([0.2], dtype=torch.float64), 0.8 * seen / seen.sum()])
        return {
            "cls_attention": row.expand(1, 2, 577),
            "values": torch.cat([cls, torch.stack(heads)], dim=1).unsqueeze(0),
        }

    def second(self, tokens: int, remaining: int) -> tuple[Tensor, Outcome]:
        method = FlowCut(form="exact")
        first = method.rule(self.signals(0), {}, tokens, 0)
        return first["score"][0], method.rule(self.signals(1), {"ema": first["ema"]}, tokens, remaining)

    def test_scores_and_their_average(self) -> None:
        first, outcome = self.second(64, 20)
        average = outcome["score"][0]
        head = torch.tensor([0.217260, 0.248316, 0.298187], dtype=torch.float64)
        torch.testing.assert_close(first[:3], head, atol=1e-6, rtol=0)
        assert first.sum().item() == pytest.approx(81.717937, abs=1e-6)
        assert (2 * average - first).sum().item() == pytest.approx(81.645526, abs=2e-6)
        assert average.sum().item() == pytest.approx(81.681731, abs=1e-6)
        seen, _ = shares(**self.taps(1))
        ratio = entropy_ratio(seen, torch.tensor([576.0], dtype=torch.float64))
        assert ratio.item() == pytest.approx(0.8861615, abs=1e-7)

    def taps(self, t: int) -> dict[str, Tensor]:
        signals = self.signals(t)
        return {"attention": signals["cls_attention"], "values": signals["values"]}

    @pytest.mark.parametrize(
        ("tokens", "dropped"), [(192, [18, 19, 26, 58]), (128, [22, 23, 30, 68]), (64, [25, 26, 35, 78])]
    )
    def test_how_many_are_dropped(self, tokens: int, dropped: list[int]) -> None:
        counts = [self.second(tokens, remaining)[1]["count"].item() for remaining in (20, 18, 10, 2)]
        assert [576 - count for count in counts] == dropped

    @pytest.mark.parametrize(("tokens", "left", "total"), [(192, 558, 160384), (128, 554, 159301), (64, 551, 158532)])
    def test_which_survive_the_first_cut(self, tokens: int, left: int, total: int) -> None:
        _, outcome = self.second(tokens, 20)
        alive = alive_after(outcome["score"], outcome["count"], torch.ones(1, 576, dtype=torch.bool))
        assert (int(alive.sum()), int(alive[0].nonzero().sum())) == (left, total)

    def test_the_best_64(self) -> None:
        kept = top_in_order(self.second(64, 20)[1]["score"], 64)[0].tolist()
        spans = [(0, 4), (52, 57), (104, 106), (120, 123), (170, 175), (222, 227), (274, 276), (289, 292)]
        spans += [(340, 345), (392, 396), (459, 463), (510, 515), (562, 566)]
        assert kept == [i for start, end in spans for i in range(start, end + 1)]
        assert sum(kept) == 17732


class TestForms:
    """The three forms on a small tower of five used layers: the last cut is after layer 3."""

    def test_survivors_of_the_exact_form_are_nested(self, graphs: TokenGraphs) -> None:
        method = FlowCut(form="exact", interval=1)
        watcher = Watcher(rewrite(graphs, method.stages(graphs.geometry, 8, None)).graphs.vision)
        with torch.no_grad():
            _, kept = watcher.run(pictures(4))
        masks = [watcher.seen[f"select_alive_l{i}"] for i in range(3)]
        last = torch.zeros(4, TOTAL, dtype=torch.bool).scatter(1, kept["vision.layers.3"], True)
        for before, after in zip([torch.ones_like(last), *masks], [*masks, last], strict=True):
            assert (after <= before).all()
        assert [m.sum(1).min().item() >= 8 for m in masks] == [True] * 3
        counts = torch.stack([m.sum(1) for m in masks])
        assert (counts[0] < TOTAL).all() and len(set(counts[1].tolist())) > 1, "images differ in their counts"

    def test_uniform_attention_drops_nothing_before_the_last_cut(self) -> None:
        seen: Signals = {
            "cls_attention": torch.full((2, 4, 577), 1 / 577),
            "values": torch.randn(2, 4, 577, 16, generator=torch.Generator().manual_seed(0)),
        }
        for remaining in range(2, 22, 2):
            assert FlowCut(form="exact").rule(seen, {}, 64, remaining)["count"].tolist() == [576, 576]

    def test_static_with_the_counts_of_one_image_keeps_what_exact_keeps(self, graphs: TokenGraphs) -> None:
        for seed in range(3):
            pixels = pictures(1, seed=seed)
            exact = rewrite(graphs, FlowCut(form="exact").stages(graphs.geometry, 8, None))
            (seen,) = observe(exact, pixels)
            static = rewrite(graphs, FlowCut().stages(graphs.geometry, 8, Frozen(counts=seen.counts)))
            assert [(s.site, s.keep) for s in static.schedule] == [*seen.counts.items(), ("vision.layers.3", 8)]
            with torch.no_grad():
                masked, by_mask = exact.graphs.vision(pixels)
                cut, by_cut = static.graphs.vision(pixels)
            assert torch.equal(by_cut["vision.layers.3"], by_mask["vision.layers.3"])
            torch.testing.assert_close(cut, masked, atol=1e-5, rtol=0)

    def test_one_cut_equals_exact_with_an_interval_past_the_tower(self, graphs: TokenGraphs) -> None:
        single = FlowCut(form="single").stages(graphs.geometry, 8, None)
        rare = FlowCut(form="exact", interval=9).stages(graphs.geometry, 8, None)
        assert [(s.site, s.how, s.keep) for s in single] == [(s.site, s.how, s.keep) for s in rare]
        assert [s.how for s in single] == ["observe", "observe", "observe", "choose"]

    @pytest.mark.parametrize("form", ["static", "exact", "single"])
    def test_one_token_is_a_budget(self, graphs: TokenGraphs, form: Literal["static", "exact", "single"]) -> None:
        with torch.no_grad():
            stages = FlowCut(form=form, interval=1).stages(graphs.geometry, 1, None)
            features, _ = rewrite(graphs, stages).graphs.vision(pictures(3))
        assert features.shape[1] == 1 and features.isfinite().all()

    def test_a_static_form_that_reaches_its_budget_early_stops_reading(self, graphs: TokenGraphs) -> None:
        stages = FlowCut().stages(graphs.geometry, 8, Frozen(counts={"vision.layers.1": 8}))
        assert [(s.site, s.how) for s in stages] == [("vision.layers.0", "observe"), ("vision.layers.1", "choose")]


@pytest.mark.parametrize(
    ("entropy", "counts"),
    [
        (0.95, [566, 556, 546, 535, 524, 512, 499, 484, 467, 444, 128]),
        (0.9, [557, 538, 519, 499, 479, 458, 436, 412, 385, 350, 128]),
        (0.8, [540, 505, 471, 438, 406, 374, 343, 311, 278, 240, 128]),
    ],
)
def test_counts_of_an_assumed_entropy(clip_l: Geometry, entropy: float, counts: list[int]) -> None:
    stages = FlowCut(assumed_entropy=entropy).stages(clip_l, 128, None)
    assert [s.keep for s in stages if s.how == "choose"] == counts
    assert [s.site for s in stages if s.how == "choose"] == [f"vision.layers.{i}" for i in range(1, 22, 2)]
    assert [s.how for s in stages if s.how != "choose"] == ["observe"] * 11


@pytest.mark.parametrize(("interval", "cuts"), [(1, 22), (2, 11), (3, 8), (5, 5), (22, 1)])
def test_cuts_are_counted_back_from_the_last(clip_l: Geometry, interval: int, cuts: int) -> None:
    stages = FlowCut(form="exact", interval=interval).stages(clip_l, 64, None)
    places = [i for i, s in enumerate(stages) if s.how != "observe"]
    assert (len(places), places[-1]) == (cuts, 21)
    assert all(b - a == interval for a, b in zip(places, places[1:], strict=False))


def test_only_the_static_form_leaves_counts_open() -> None:
    assert FlowCut(ema=0.25).dynamic() == FlowCut(form="exact", ema=0.25)
    assert FlowCut(form="exact").dynamic() is None
    assert FlowCut(form="single").dynamic() is None


def test_the_weight_of_the_past(graphs: TokenGraphs) -> None:
    orders = []
    for ema in (0.0, 0.5):
        watcher = Watcher(
            rewrite(graphs, FlowCut(form="single", ema=ema).stages(graphs.geometry, 8, None)).graphs.vision
        )
        with torch.no_grad():
            watcher.run(pictures(1))
        scores = [watcher.seen[f"select_rule_l{i}"]["score"] for i in range(4)]
        orders.append(order(scores[3]))
        if ema == 0.0:
            fresh = scores
    expected = fresh[0]
    for score in fresh[1:]:
        expected = 0.5 * expected + 0.5 * score
    torch.testing.assert_close(scores[3], expected, atol=1e-6, rtol=1e-5)
    assert not torch.equal(*orders)


def test_a_tower_of_one_used_layer_is_refused() -> None:
    geometry = families.geometry(config(vision_layers=2))
    with pytest.raises(MethodError, match="before the last used vision layer, and this tower uses only one"):
        FlowCut().stages(geometry, 8, None)
    assert len(FlowCut().stages(families.geometry(config(vision_layers=3)), 8, None)) == 1
