"""VTC-CLS: the recorded sums, the layers it reads, and what it refuses."""

import pytest
import torch
from models import TOTAL, build, pictures
from torch import Tensor
from watcher import Watcher

from tokcarve.passes import families
from tokcarve.passes.choose import top_in_order
from tokcarve.passes.errors import MethodError
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.insert import rewrite
from tokcarve.passes.methods.vtc_cls import VtcCls, summed
from tokcarve.passes.stage import Outcome


@pytest.fixture(scope="module")
def graphs() -> TokenGraphs:
    return families.capture(build())


@pytest.fixture(scope="module")
def rows() -> list[Tensor]:
    """The [CLS] rows [2, 64] of every layer of the tower, head means, from the attention maps of the model itself."""
    with torch.no_grad():
        maps = build(attention="eager").model.vision_tower(pictures(2), output_attentions=True).attentions
    return [attention.mean(dim=1)[:, 0, 1:] for attention in maps]


def test_the_sum_by_hand() -> None:
    # two heads, [CLS] and two patches
    attention = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]])
    first = summed({"cls_attention": attention}, {})
    torch.testing.assert_close(first["score"], torch.tensor([[0.225, 0.475]]), atol=1e-6, rtol=0)
    second = summed({"cls_attention": attention}, {"score": first["score"]})
    torch.testing.assert_close(second["score"], torch.tensor([[0.45, 0.95]]), atol=1e-6, rtol=0)


def recorded_layer(layer: int) -> Tensor:
    """Attention [1, 2, 577] whose head mean over the patches is exp(2 sin(0.21 i + layer)) / 1000."""
    i = torch.arange(576, dtype=torch.float64)
    row = torch.exp(2 * torch.sin(0.21 * i + layer)) / 1000
    row = torch.cat([torch.tensor([0.3], dtype=torch.float64), row])
    return torch.stack([1.5 * row, 0.5 * row]).unsqueeze(0)


def recorded(start: int, end: int = 23, *, shift: float = 0, scale: float = 1) -> Tensor:
    outcome: Outcome = {}
    for layer in range(start, end):
        outcome = summed({"cls_attention": scale * recorded_layer(layer) + shift * layer}, outcome)
    return outcome["score"]


class TestRecordedSums:
    @pytest.mark.parametrize(
        ("start", "tokens", "total"),
        [(20, 256, 74561), (20, 128, 37526), (20, 64, 19152), (16, 256, 74383), (16, 128, 37401), (16, 64, 18865)],
    )
    def test_what_is_kept(self, start: int, tokens: int, total: int) -> None:
        assert int(top_in_order(recorded(start), tokens).sum()) == total

    @pytest.mark.parametrize(
        ("tokens", "first"),
        [
            (256, [0, 1, 2, 3, 21, 22, 23, 24]),
            (128, [0, 24, 25, 26, 27, 28, 29, 30]),
            (64, [26, 27, 28, 56, 57, 58, 86, 87]),
        ],
    )
    def test_the_first_kept(self, tokens: int, first: list[int]) -> None:
        assert top_in_order(recorded(20), tokens)[0, :8].tolist() == first

    def test_a_constant_per_layer_or_a_common_factor_changes_nothing(self) -> None:
        kept = top_in_order(recorded(20), 64)
        assert torch.equal(top_in_order(recorded(20, shift=0.5), 64), kept)
        assert torch.equal(top_in_order(recorded(20, scale=7), 64), kept)

    def test_one_layer_too_many_is_seen(self) -> None:
        assert not torch.equal(top_in_order(recorded(20, 24), 64), top_in_order(recorded(20), 64))


@pytest.mark.parametrize("layers", [1, 3, 5])
def test_the_layers_before_the_features_are_summed(graphs: TokenGraphs, rows: list[Tensor], layers: int) -> None:
    stages = VtcCls(layers=layers).stages(graphs.geometry, 10, None)
    assert [s.site for s in stages] == [f"vision.layers.{i}" for i in range(5 - layers, 5)]
    watcher = Watcher(rewrite(graphs, stages).graphs.vision)
    with torch.no_grad():
        _, kept = watcher.run(pictures(2))
    score = watcher.seen["select_rule_l4"]["score"]
    expected = torch.stack(rows[5 - layers : 5]).sum(dim=0)
    torch.testing.assert_close(score, expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(kept["vision.layers.4"], top_in_order(expected, 10))
    late = torch.stack(rows[6 - layers : 6]).sum(dim=0)
    assert not torch.equal(top_in_order(late, 10), kept["vision.layers.4"]), "the layer behind the features is not read"


def test_the_scores_are_attention(graphs: TokenGraphs) -> None:
    watcher = Watcher(rewrite(graphs, VtcCls(layers=2).stages(graphs.geometry, 10, None)).graphs.vision)
    with torch.no_grad():
        watcher.run(pictures(2))
    for layer in (3, 4):
        row = watcher.seen[f"select_cls_attention_l{layer}"]
        assert row.shape == (2, 4, TOTAL + 1)
        torch.testing.assert_close(row.sum(dim=-1), torch.ones(2, 4), atol=1e-6, rtol=0)
        assert row.max() > 3 / TOTAL, "attention that looks at something"


@pytest.mark.parametrize("layers", [0, -1, 6])
def test_layers_outside_the_tower_are_refused(graphs: TokenGraphs, layers: int) -> None:
    with pytest.raises(MethodError, match=f"layers={layers} of vtc_cls .* 5 vision layers in use; choose 1..5"):
        VtcCls(layers=layers).stages(graphs.geometry, 10, None)
