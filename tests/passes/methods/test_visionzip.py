"""VisionZip: the case worked by hand, every count, both orders, the recorded folds, and what it refuses."""

import pytest
import torch
from goldens_support import IMAGES, Recorded, carved, check_answers, golden_inputs
from models import TOTAL, build, pictures
from torch import Tensor
from watcher import Watcher

from tokcarve.passes import families
from tokcarve.passes.choose import merge
from tokcarve.passes.contextual import folding
from tokcarve.passes.errors import MethodError
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.insert import rewrite
from tokcarve.passes.invariants import check_carved
from tokcarve.passes.methods.visionzip import VisionZip
from tokcarve.passes.stage import Outcome

BUDGETS = (192, 128, 64, 32)
SITE, RULE = "vision.layers.22", "select_rule_l22"


@pytest.fixture(scope="module")
def graphs() -> TokenGraphs:
    return families.capture(build())


def merged(rows: Tensor, outcome: Outcome) -> Tensor:
    """Rows [batch, 1 + n, hidden] folded; [CLS] is token -1."""
    index, sources = outcome["index"] + 1, outcome["sources"] + 1
    return merge(rows, outcome["weights"], sources=sources, index=index, own=outcome["own"])


class TestByHand:
    """[CLS] and 11 patches, 4 of them dominant, 3 contextual tokens; the keys are the rows themselves."""

    i = torch.arange(1, 13, dtype=torch.float64)
    j = torch.arange(1, 7, dtype=torch.float64)
    rows = (torch.sin(0.7 * i[:, None] * j) + 0.3 * torch.cos(1.1 * i[:, None] - 0.5 * j)).float().unsqueeze(0)
    attention = torch.softmax(torch.sin(1.7 * i), dim=0).float().view(1, 1, 12)

    def outcome(self, order: str) -> Outcome:
        signals = {"cls_attention": self.attention, "keys": self.rows.unsqueeze(1)}
        return folding(11, 8, 3, order)(signals, {})  # type: ignore[arg-type]

    def test_who_is_kept_and_who_joins_whom(self) -> None:
        outcome = self.outcome("published")
        assert (outcome["index"] + 1).tolist() == [[0, 3, 4, 7, 11, 1, 5, 8]]
        assert (outcome["sources"] + 1).tolist() == [[1, 2, 5, 6, 8, 9, 10]]
        joins = torch.zeros(8, 7)
        # 2 joins 8; 6 and 9 join 5; 10 joins 1
        joins[7, 1], joins[6, 3], joins[6, 5], joins[5, 6] = 1, 0.5, 0.5, 1
        assert torch.equal(outcome["weights"][0], joins)

    def test_the_sum_of_anchor_and_mean(self) -> None:
        folded = merged(self.rows, self.outcome("published"))
        expected = [[2.105452, 0.778085, -1.652912], [-0.719406, 1.41063, 0.988123], [0.297449, -1.297466, -0.156711]]
        torch.testing.assert_close(folded[0, 5:, :3], torch.tensor(expected), atol=2e-6, rtol=0)
        assert torch.equal(folded[0, :5], self.rows[0, [0, 3, 4, 7, 11]])

    def test_raster_order_is_the_same_rows_sorted(self) -> None:
        published, raster = self.outcome("published"), self.outcome("raster")
        assert (raster["index"] + 1).tolist() == [[0, 1, 3, 4, 5, 7, 8, 11]]
        order = torch.argsort(published["index"][0])
        assert torch.equal(merged(self.rows, raster)[0], merged(self.rows, published)[0, order])

    def test_equal_keys_all_join_the_first_anchor(self) -> None:
        signals = {"cls_attention": self.attention, "keys": torch.ones(1, 2, 12, 6)}
        outcome = folding(11, 8, 3, "published")(signals, {})
        weights = outcome["weights"][0, 5:]
        assert weights[0].tolist() == [0, 0.25, 0, 0.25, 0, 0.25, 0.25]
        assert not weights[1:].any()
        outcome = folding(11, 8, 3, "published")({**signals, "keys": 0 * signals["keys"]}, {})
        assert torch.equal(outcome["weights"][0, 5:], weights), "keys of length 0 stay finite"

    def test_attention_is_summed_over_heads(self) -> None:
        """One head alone and a second that looks at one dropped patch only."""
        other = torch.zeros(1, 1, 12)
        other[0, 0, 2] = 1
        signals = {"cls_attention": torch.cat([self.attention, other], dim=1), "keys": self.rows.unsqueeze(1)}
        assert 2 in (folding(11, 8, 3, "published")(signals, {})["index"] + 1)[0, 1:5].tolist()


@pytest.mark.parametrize("share", [0.0, 0.15625, 0.5, 0.9])
def test_every_count_is_exact(share: float) -> None:
    """Every patch is kept, or folded into exactly one contextual token, or, where none is asked for, dropped."""
    generator = torch.Generator().manual_seed(1)
    attention = torch.softmax(torch.randn(2, 3, 65, generator=generator), dim=-1)
    signals = {"cls_attention": attention, "keys": torch.randn(2, 3, 65, 4, generator=generator)}
    for tokens in range(1, TOTAL):
        contextual = round(tokens * share)
        if contextual == tokens:
            continue
        outcome = folding(TOTAL, tokens, contextual, "raster")(signals, {})
        index, sources, weights = outcome["index"], outcome["sources"], outcome["weights"]
        assert index.shape == (2, tokens) and (index[:, 0] == -1).all()
        assert (index[:, 1:] > index[:, :-1]).all() and index.max() < TOTAL
        assert weights.shape == (2, tokens, TOTAL - (tokens - contextual - 1))
        assert weights.isfinite().all() and (outcome["own"] == 1).all()
        joined = (weights > 0).sum(dim=1)
        anchors = (sources.unsqueeze(2) == index.unsqueeze(1)).any(dim=2)
        assert torch.equal(joined, (~anchors).long() if contextual else 0 * joined)
        assert (anchors.sum(dim=1) == contextual).all()
        sums = weights.sum(dim=2)
        torch.testing.assert_close(sums[sums > 0], torch.ones_like(sums[sums > 0]))


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 16, 57, 62, 63])
def test_the_tower_serves_small_and_large_counts(graphs: TokenGraphs, tokens: int) -> None:
    result = rewrite(graphs, VisionZip().stages(graphs.geometry, tokens, None))
    check_carved(result.graphs, result.schedule)
    for pixels in (pictures(2), torch.zeros(2, 3, 112, 112)):
        with torch.no_grad():
            features, found = result.graphs.vision(pixels)
        assert features.shape[:2] == (2, tokens) and features.isfinite().all()
        assert (found["vision.layers.4"][:, 0] == -1).all(), "[CLS] comes first"


def test_one_token_is_cls(graphs: TokenGraphs) -> None:
    watcher = Watcher(rewrite(graphs, VisionZip().stages(graphs.geometry, 1, None)).graphs.vision)
    with torch.no_grad():
        features, _ = watcher.run(pictures(2))
        assert torch.equal(features, graphs.parts.connector(watcher.seen["layers.4"][:, :1]))


def test_every_parameter_matters(graphs: TokenGraphs) -> None:
    def found(method: VisionZip) -> Tensor:
        with torch.no_grad():
            return rewrite(graphs, method.stages(graphs.geometry, 16, None)).graphs.vision(pictures(2))[0]

    plain = found(VisionZip())
    assert not torch.equal(plain, found(VisionZip(order="published")))
    assert not torch.equal(plain, found(VisionZip(contextual=0.25)))


@pytest.mark.parametrize(("share", "folded", "limit"), [(1.0, 16, "0.93"), (0.98, 16, "0.93"), (-0.1, -2, "0.93")])
def test_a_share_that_leaves_no_cls_is_refused(graphs: TokenGraphs, share: float, folded: int, limit: str) -> None:
    message = rf"contextual={share} of visionzip folds {folded} of 16 tokens .* \[CLS\]; choose 0..{limit}"
    with pytest.raises(MethodError, match=message):
        VisionZip(contextual=share).stages(graphs.geometry, 16, None)
    VisionZip(contextual=float(limit)).stages(graphs.geometry, 16, None)


def test_a_tower_without_cls_is_refused() -> None:
    graphs = families.capture(build("llama", "siglip"))
    with pytest.raises(MethodError, match=r"this siglip tower has no \[CLS\] token"):
        rewrite(graphs, VisionZip().stages(graphs.geometry, 16, None))


@pytest.fixture(scope="module")
def golden() -> Recorded:
    return Recorded("visionzip")


@pytest.mark.parametrize("tokens", BUDGETS)
def test_it_folds_as_its_authors_code_folds(golden: Recorded, tokens: int) -> None:
    budget = str(tokens)
    assert all(golden.trusted(i, budget) for i in IMAGES), "the recorded cuts have no near ties"
    contextual, dominant = (int(golden.get(0, budget, f"{name}_num")) for name in ("contextual", "dominant"))
    assert contextual == round(tokens * VisionZip().contextual) == tokens - dominant
    watcher = Watcher(carved(VisionZip(order="published"), tokens).graphs.vision)
    with torch.no_grad():
        features, found = watcher.run(golden_inputs()[0])
    assert torch.equal(found[SITE][:, 1:dominant], golden.stack(budget, "dominant_patches").long())
    assert torch.equal(found[SITE][:, dominant:], golden.stack(budget, "contextual_targets").long())
    score = watcher.seen["select_cls_attention_l22"].sum(dim=1)[:, 1:]
    torch.testing.assert_close(score, golden.stack(budget, "score"), atol=1e-6, rtol=1e-4)
    outcome = watcher.seen[RULE]
    for i in IMAGES:
        joined = outcome["weights"][i, dominant:].T > 0
        folded = joined.any(dim=1)
        assert outcome["sources"][i][folded].tolist() == golden.get(i, budget, "merged_patches").tolist()
        assert joined[folded].long().argmax(dim=1).tolist() == golden.get(i, budget, "merged_assignment").tolist()
    torch.testing.assert_close(watcher.seen["select_merge_l22"], golden.stack(budget, "feat_clip"), atol=5e-4, rtol=0)
    check_answers(features, golden, budget)


def test_the_comparison_has_power(golden: Recorded) -> None:
    """Raster order and a neighbouring share give other rows, and dropping what is folded other features."""
    recorded = golden.stack("128", "feat")
    for method in (
        VisionZip(),
        VisionZip(order="published", contextual=0.17),
        VisionZip(order="published", contextual=0.0),
    ):
        with torch.no_grad():
            features, _ = carved(method, 128).graphs.vision(golden_inputs()[0])
        assert ((features - recorded).abs().amax(dim=(1, 2)) > 0.05).all(), method
