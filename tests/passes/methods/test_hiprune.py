"""HiPrune: the cases worked by hand, the recorded cuts, and what it refuses."""

import pytest
import torch
from goldens_support import IMAGES, Recorded, carved, check_answers, golden_inputs
from hypothesis import given
from hypothesis import strategies as st
from models import TOTAL, Tower, build, config, pictures
from torch import Tensor
from watcher import Watcher

from tokcarve.passes import families
from tokcarve.passes.choose import top_in_order
from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.insert import rewrite
from tokcarve.passes.methods.hiprune import HiPrune, anchor_count, strict

BUDGETS = (192, 128, 64, 32)


@pytest.fixture(scope="module")
def graphs() -> TokenGraphs:
    return families.capture(build())


def clip_l() -> Geometry:
    made = config(vision_layers=24)
    made.vision_config.image_size = 336
    return families.geometry(made)


def kept(objects: Tensor, registers: Tensor, keep: int, anchors: int, columns: int, bonus: float = 2.0) -> list[int]:
    score = strict(objects, registers, anchors=anchors, columns=columns, bonus=bonus)
    return top_in_order(score, keep)[0].tolist()


def by_sets(objects: list[float], registers: list[float], keep: int, anchors: int, columns: int) -> list[int]:
    """The same choice with sets, as the paper words it and the code clamps it."""
    total = len(objects)
    found = sorted(range(total), key=lambda i: (-objects[i], i))[:anchors]
    near = {min(max(a + s, 0), total - 1) for a in found for s in (0, 1, -1, columns, -columns)}
    rest = sorted(set(range(total)) - near, key=lambda i: (-registers[i], i))
    return sorted(near | set(rest[: keep - len(near)]))


class TestByHand:
    """Scores that are permutations, so nothing ties."""

    i = torch.arange(576, dtype=torch.float64)
    objects = (((197 * i + 31) % 577) / 577**2).float().unsqueeze(0)
    registers = (((389 * i + 7) % 577) / 577**2).float().unsqueeze(0)

    @pytest.mark.parametrize(
        ("keep", "near", "total"),
        [
            (192, {134, 157, 158, 159, 175, 182, 198, 199, 200, 216, 223, 239}, 54721),
            (128, {134, 157, 158, 159, 182, 175, 198, 199, 200, 223, 216, 239, 240, 241, 264}, 36933),
            (64, {134, 157, 158, 159, 182}, 18839),
        ],
    )
    def test_three_budgets(self, keep: int, near: set[int], total: int) -> None:
        found = kept(self.objects, self.registers, keep, anchor_count(0.1, keep), 24)
        assert len(found) == keep and sum(found) == total
        assert near <= set(found)

    def test_the_neighbourhood_of_192(self) -> None:
        score = strict(self.objects, self.registers, anchors=4, columns=24, bonus=2.0)
        near = [134, 157, 158, 159, 175, 182, 198, 199, 200, 216, 223, 239, 240, 241, 257, 264, 280, 281, 282, 305]
        assert (score[0] > 1).nonzero().flatten().tolist() == near
        assert kept(self.objects, self.registers, 192, 4, 24)[:4] == [4, 7, 10, 13]

    @pytest.mark.parametrize(("keep", "anchors", "total"), [(64, 1, 5966), (43, 1, 4038), (22, 0, 2113)])
    def test_column_sums_that_exceed_one(self, keep: int, anchors: int, total: int) -> None:
        """Sums instead of means, with sinks: a bonus above them all keeps the count exact."""
        j = torch.arange(192, dtype=torch.float64)
        objects, registers = ((53 * j + 5) % 193) / 96.5, ((71 * j + 11) % 193) / 96.5
        objects[40], registers[40] = 3, 9
        found = kept(objects.float().unsqueeze(0), registers.float().unsqueeze(0), keep, anchors, 16, bonus=1e4)
        assert (len(set(found)), sum(found)) == (keep, total)

    @pytest.mark.parametrize(
        ("anchor", "near"),
        [(47, {23, 46, 47, 48, 71}), (5, {0, 4, 5, 6, 29}), (560, {536, 559, 560, 561, 575}), (0, {0, 1, 24})],
    )
    def test_the_edges_of_the_image(self, anchor: int, near: set[int]) -> None:
        """The last column reaches into the next row; the first and last rows reach the corners."""
        objects = torch.zeros(1, 576)
        objects[0, anchor] = 1
        assert (
            set((strict(objects, objects * 0, anchors=1, columns=24, bonus=2.0)[0]).nonzero().flatten().tolist())
            == near
        )


@given(st.integers(0, 2**31), st.integers(1, 48), st.data())
def test_it_is_the_choice_by_sets(seed: int, keep: int, data: st.DataObject) -> None:
    anchors = data.draw(st.integers(0, keep // 5))
    draw = torch.randint(0, 9, (2, 3, 48), generator=torch.Generator().manual_seed(seed)) / 8  # ties in plenty
    found = top_in_order(strict(draw[0], draw[1], anchors=anchors, columns=8, bonus=2.0), keep)
    for i in range(3):
        assert found[i].tolist() == by_sets(draw[0, i].tolist(), draw[1, i].tolist(), keep, anchors, 8)


@pytest.mark.parametrize(
    ("tokens", "anchors"), [(192, 4), (128, 3), (64, 1), (32, 1), (213, 4), (160, 3), (53, 1), (25, 0)]
)
def test_anchors_are_rounded_half_to_even(tokens: int, anchors: int) -> None:
    assert anchor_count(0.1, tokens) == anchors


class TestInTheTower:
    @pytest.mark.parametrize("tower", ["clip", "siglip"])
    def test_two_layers_are_read(self, tower: Tower) -> None:
        """Column means over every row, [CLS] included: layer 3 finds the anchors, the last used one the rest."""
        graphs = families.capture(build("llama", tower))
        used, prefix = graphs.geometry.vision.layers_used, graphs.geometry.vision.prefix
        with torch.no_grad():
            model = build("llama", tower, attention="eager").model.vision_tower
            maps = model(pictures(2), output_attentions=True).attentions
            watcher = Watcher(
                rewrite(graphs, HiPrune(alpha=0.6, object_layer=3).stages(graphs.geometry, 16, None)).graphs.vision
            )
            _, found = watcher.run(pictures(2))
        means = [m.mean(dim=(1, 2))[:, prefix:] for m in maps]
        torch.testing.assert_close(watcher.seen["select_rule_l2"]["object"], means[2], atol=1e-6, rtol=1e-5)
        expected = [by_sets(means[2][i].tolist(), means[used - 1][i].tolist(), 16, 2, 8) for i in range(2)]
        assert found[f"vision.layers.{used - 1}"].tolist() == expected
        assert means[2].sum(dim=1).max() <= 1 + 1e-5

    @pytest.mark.parametrize(
        ("geometry", "layer", "sites"),
        [
            (clip_l(), None, [8, 22]),
            (clip_l(), 9, [8, 22]),
            (clip_l(), 1, [0, 22]),
            (clip_l(), 23, [22]),
            (families.geometry(config()), None, [1, 4]),
            (families.geometry(config(vision_layers=1, feature_layer=-1)), None, [0]),
            (families.geometry(config(vision_layers=24, feature_layer=-20)), None, [4]),
        ],
    )
    def test_where_it_looks(self, geometry: Geometry, layer: int | None, sites: list[int]) -> None:
        stages = HiPrune(object_layer=layer).stages(geometry, 16, None)
        assert [stage.site for stage in stages] == [f"vision.layers.{i}" for i in sites]
        assert [stage.how for stage in stages] == ["observe", "choose"][-len(sites) :]

    def test_one_layer_may_be_both(self, graphs: TokenGraphs) -> None:
        watcher = Watcher(
            rewrite(graphs, HiPrune(alpha=1.0, object_layer=5).stages(graphs.geometry, 16, None)).graphs.vision
        )
        with torch.no_grad():
            watcher.run(pictures(2))
        score = watcher.seen["select_rule_l4"]["score"]
        means = torch.where(score > 1, score - 2, score)
        for i in range(2):
            row = watcher.seen["select_attention_l4"].mean(dim=1)[i, 1:].tolist()
            assert top_in_order(score, 16)[i].tolist() == by_sets(row, row, 16, 3, 8)
        assert means.max() < 1

    def test_every_parameter_matters(self, graphs: TokenGraphs) -> None:
        def found(**parameters: float | int) -> Tensor:
            stages = HiPrune(**parameters).stages(graphs.geometry, 16, None)  # type: ignore[arg-type]
            with torch.no_grad():
                return rewrite(graphs, stages).graphs.vision(pictures(2))[1]["vision.layers.4"]

        plain = found(alpha=0.0)
        assert torch.equal(plain, found(alpha=0.0, object_layer=1)), "without anchors only the last layer counts"
        assert not torch.equal(plain, found(alpha=1.0))
        assert not torch.equal(found(alpha=1.0, object_layer=1), found(alpha=1.0, object_layer=4))


class TestRefusals:
    @pytest.mark.parametrize("layer", [0, -1, 6])
    def test_layers_outside_the_tower(self, graphs: TokenGraphs, layer: int) -> None:
        with pytest.raises(
            MethodError, match=f"object_layer={layer} of hiprune .* 5 vision layers in use; choose 1..5"
        ):
            HiPrune(object_layer=layer).stages(graphs.geometry, 16, None)

    def test_neighbours_that_do_not_fit(self) -> None:
        message = "alpha=1.0 of hiprune asks for 43 anchors .* 213 tokens; choose alpha in 0..0.98"
        with pytest.raises(MethodError, match=message):
            HiPrune(alpha=1.0).stages(clip_l(), 213, None)
        with pytest.raises(MethodError, match="choose alpha in 0.."):
            HiPrune(alpha=-0.001).stages(clip_l(), 213, None)

    def test_the_advice_works(self, graphs: TokenGraphs) -> None:
        refused = 0
        for tokens in range(1, TOTAL):
            try:
                HiPrune(alpha=1.0).stages(graphs.geometry, tokens, None)
            except MethodError as error:
                refused += 1
                HiPrune(alpha=float(str(error).rpartition("..")[2])).stages(graphs.geometry, tokens, None)
        assert refused == sum(round(tokens / 5) * 5 > tokens for tokens in range(1, TOTAL)) > 10


@pytest.fixture(scope="module")
def golden() -> Recorded:
    return Recorded("hiprune")


@pytest.mark.parametrize("tokens", BUDGETS)
def test_it_keeps_what_its_authors_code_keeps(golden: Recorded, tokens: int) -> None:
    budget = str(tokens)
    assert all(golden.trusted(i, budget) for i in IMAGES), "the recorded cuts have no near ties"
    watcher = Watcher(carved(HiPrune(object_layer=9), tokens).graphs.vision)
    with torch.no_grad():
        features, found = watcher.run(golden_inputs()[0])
    assert torch.equal(found["vision.layers.22"], golden.stack(budget, "kept").long())
    objects = golden.stack(budget, "object_score")
    torch.testing.assert_close(watcher.seen["select_rule_l8"]["object"], objects, atol=1e-6, rtol=1e-4)
    score = watcher.seen["select_rule_l22"]["score"]
    for i in IMAGES:
        near = golden.get(i, budget, "buffers_and_anchors").tolist()
        assert (score[i] > 1).nonzero().flatten().tolist() == sorted(near)
        anchors = set(golden.get(i, budget, "anchors").tolist())
        assert anchors == set(top_in_order(objects[i : i + 1], len(anchors))[0].tolist()) <= set(near)
    registers = torch.where(score > 1, score - 2, score)
    torch.testing.assert_close(registers, golden.stack(budget, "register_score"), atol=1e-6, rtol=1e-4)
    check_answers(features, golden, budget)


def test_the_comparison_has_power(golden: Recorded) -> None:
    recorded = golden.stack("128", "kept").long()
    for method in (HiPrune(alpha=0.0), HiPrune(object_layer=10), HiPrune(alpha=0.2)):
        with torch.no_grad():
            _, found = carved(method, 128).graphs.vision(golden_inputs()[0])
        assert not torch.equal(found["vision.layers.22"], recorded), method
