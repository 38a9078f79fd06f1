"""Recoverable Compression: the recorded case, plain loops, how a budget is split, what it reads, what it refuses."""

from typing import Any

import pytest
import torch
from goldens_support import carved, golden_inputs
from hypothesis import given
from hypothesis import strategies as st
from models import TOTAL, build, pictures, prompt
from torch import Tensor
from twelve import SEEN, TEXT, TWELVE
from watcher import Watcher

from tokcarve.passes import choose, families
from tokcarve.passes.errors import MethodError, TapNotFound
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.insert import rewrite
from tokcarve.passes.methods.recoverable import Recoverable, attended
from tokcarve.passes.stage import Outcome


@pytest.fixture(scope="module")
def graphs() -> TokenGraphs:
    return families.capture(build())


def applied(tokens: Tensor, outcome: Outcome) -> Tensor:
    return choose.merge(tokens, outcome["weights"], index=outcome["index"], own=outcome["own"])


def members(outcome: Outcome) -> dict[int, set[int]]:
    """What every merged token of the first image holds besides itself, by its index."""
    pairs = zip(outcome["index"][0].tolist(), outcome["weights"][0], strict=True)
    return {i: set(weights.nonzero().flatten().tolist()) for i, weights in pairs if bool(weights.any())}


class TestTwelveRows:
    similar = torch.nn.functional.cosine_similarity(TWELVE, TEXT.unsqueeze(1), dim=2) / 6**0.5

    def merged(self, **settings: Any) -> Outcome:
        return Recoverable(**{"neighbours": 4, **settings}).merged(SEEN, TWELVE, self.similar, (3, 2, 2))

    def test_in_the_published_order(self) -> None:
        made = self.merged(order="published")
        # kept by [CLS] 11, 0, 7 and by the text 10, 1; centres 4 and 3 by falling attention; the last token
        assert made["index"][0, :7].tolist() == [0, 1, 7, 10, 11, 4, 3]
        assert members(made) == {4: {8, 2, 3, 5}, 3: {4, 8, 2, 5}, 8: {2, 5, 6, 8, 9}}
        tokens = applied(TWELVE, made)
        assert torch.equal(tokens[0, :5], TWELVE[0, [0, 1, 7, 10, 11]]), "kept tokens are untouched"
        firsts = torch.tensor([-0.282893, 0.052785, -0.042948])
        torch.testing.assert_close(tokens[0, 5:, 0], firsts, atol=1e-6, rtol=0)

    def test_raster_order_gives_the_same_tokens(self) -> None:
        made, published = self.merged(), self.merged(order="published")
        assert made["index"].tolist() == [[0, 1, 3, 4, 7, 8, 10, 11]]
        place = [published["index"][0].tolist().index(i) for i in made["index"][0].tolist()]
        assert torch.equal(applied(TWELVE, made)[0], applied(TWELVE, published)[0, place])

    def test_without_text_keys_alone_choose_neighbours(self) -> None:
        keys = torch.nn.functional.normalize(TWELVE[0], dim=1)
        near = keys[4] @ keys[[2, 3, 5, 6, 8, 9]].T
        best = {[2, 3, 5, 6, 8, 9][i] for i in near.topk(4).indices.tolist()}
        assert members(self.merged(text_weight=0.0))[4] == best != {8, 2, 3, 5}

    def test_fewer_tokens_than_neighbours(self) -> None:
        rest = {2, 3, 4, 5, 6, 8, 9}
        assert members(self.merged(neighbours=100)) == {4: rest - {4}, 3: rest - {3}, 8: rest - {3, 4}}

    def test_equal_attention_goes_by_index(self) -> None:
        made = Recoverable(neighbours=2, order="published").merged(
            torch.full((1, 12), 1 / 12), TWELVE, self.similar, (2, 1, 3)
        )
        assert made["index"].tolist() == [[0, 1, 10, 2, 3, 4, 5]]


def by_loops(
    seen: Tensor, keys: Tensor, similar: Tensor, counts: tuple[int, int, int], method: Recoverable
) -> list[tuple[int, dict[int, float]]]:
    """One image: the published tokens in order, each its index and what it weighs; as the specification puts it."""
    ids, (by_cls, by_text, clusters) = range(len(seen)), counts
    seen_, similar_ = seen.tolist(), similar.tolist()
    falling = sorted(ids, key=lambda i: (-seen_[i], i))
    first = falling[:by_cls]
    asked = sorted((i for i in ids if i not in first), key=lambda i: (-similar_[i], i))[:by_text]
    made = [(i, {i: 1.0}) for i in sorted([*first, *asked])]
    rest = [i for i in falling if i not in first and i not in asked]
    centres, units = rest[:clusters], keys / keys.norm(dim=1, keepdim=True)
    for z in centres:
        pool = [p for p in rest if p != z]
        score = {p: float(units[z] @ units[p]) + method.text_weight * similar_[p] for p in pool}
        near = sorted(pool, key=lambda p: (-score[p], p))[: method.neighbours]
        made.append((z, {z: 1.0} | {p: seen_[p] for p in near}))
    others = rest[clusters:]
    return made + [(others[0], {p: seen_[p] for p in others})] * (clusters > 0)


@given(
    st.integers(0, 10_000), st.integers(1, 23), st.sampled_from([0.0, 0.1, 0.5, 1.0]), st.sampled_from([0.0, 0.5, 1.0])
)
def test_plain_loops_merge_the_same(seed: int, tokens: int, clusters: float, share: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    seen = torch.softmax(2 * torch.randn(2, 24, generator=generator), dim=1)
    keys, similar = torch.randn(2, 24, 6, generator=generator), torch.randn(2, 24, generator=generator) / 50
    method = Recoverable(clusters=clusters, text_share=share, neighbours=5, order="published")
    counts = method.counts(tokens)
    made = method.merged(seen, keys, similar, counts)
    assert made["index"].shape == (2, tokens)
    whole = made["weights"] + made["own"].unsqueeze(2) * choose.one_hot(made["index"], 24)
    for image in range(2):
        expected = by_loops(seen[image], keys[image], similar[image], counts, method)
        assert made["index"][image].tolist() == [index for index, _ in expected]
        table = torch.tensor([[weights.get(i, 0.0) for i in range(24)] for _, weights in expected])
        torch.testing.assert_close(whole[image], table, atol=1e-6, rtol=0)


class TestCounts:
    @pytest.mark.parametrize(
        ("tokens", "expected"),
        [(192, (86, 86, 19)), (64, (29, 28, 6)), (10, (4, 4, 1)), (3, (1, 0, 1)), (2, (0, 0, 1)), (1, (1, 0, 0))],
    )
    def test_by_hand(self, tokens: int, expected: tuple[int, int, int]) -> None:
        assert Recoverable().counts(tokens) == expected

    @pytest.mark.parametrize("clusters", [0.0, 0.01, 0.1, 0.5, 1.0])
    @pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
    def test_they_add_up(self, clusters: float, share: float) -> None:
        for tokens in range(1, TOTAL):
            counts = Recoverable(clusters=clusters, text_share=share).counts(tokens)
            assert sum(counts) + (counts[2] > 0) == tokens and min(counts) >= 0

    def test_no_clusters_no_last_token(self) -> None:
        assert Recoverable(clusters=0.0).counts(10) == (5, 5, 0)
        made = Recoverable(clusters=0.0).merged(SEEN, TWELVE, SEEN, (2, 2, 0))
        assert members(made) == {} and made["own"].tolist() == [[1] * 4]


@torch.no_grad()
def see(graphs: TokenGraphs, method: Recoverable, tokens: int = 16) -> tuple[Tensor, Tensor]:
    pixels, (ids, lengths) = pictures(2), prompt([7, 10], visual=1)
    features, kept, _ = rewrite(graphs, method.stages(graphs.geometry, tokens, None)).graphs.see(pixels, ids, lengths)
    return features, kept["connector"]


class TestInTheGraph:
    def test_it_reads_one_wide_head_of_the_layer_behind_the_last(self, graphs: TokenGraphs) -> None:
        pixels, (ids, lengths) = pictures(2), prompt([7, 10], visual=1)
        watcher = Watcher(rewrite(graphs, Recoverable().stages(graphs.geometry, 16, None)).graphs.vision)
        tower = build().model.vision_tower
        with torch.no_grad():
            watcher.run(pixels, ids, lengths)
            layer = tower.encoder.layers[5]
            rows = layer.layer_norm1(tower(pixels, output_hidden_states=True).hidden_states[5])
            query, keys = layer.self_attn.q_proj(rows), layer.self_attn.k_proj(rows)
        expected = torch.softmax(query @ keys.transpose(1, 2) / 32**0.5, dim=2)[:, 0, 1:]
        outcome = watcher.seen["select_rule_l4"]
        torch.testing.assert_close(outcome["seen"], expected, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(outcome["keys"], keys[:, 1:], atol=1e-5, rtol=1e-5)

    def test_attention_by_hand(self) -> None:
        # two heads of two numbers: products with the query (1, 0, 0, 1) are 0, 2 ln 2 and 2 ln 3 before the root of 4
        log2, log3 = torch.tensor([2.0, 3.0]).log().tolist()
        keys = torch.tensor([[[[0.0, 5.0], [log2, 1.0], [2 * log3, 0.0]], [[7.0, 0.0], [3.0, log2], [1.0, 0.0]]]])
        query = torch.tensor([[[[1.0, 0.0]], [[0.0, 1.0]]]])
        made = attended({"next_keys": keys, "next_cls_query": query}, {})
        torch.testing.assert_close(made["seen"], torch.tensor([[2 / 6, 3 / 6]]), atol=1e-6, rtol=0)
        assert torch.equal(made["keys"], torch.tensor([[[log2, 1.0, 3.0, log2], [2 * log3, 0.0, 1.0, 0.0]]]))

    @pytest.mark.parametrize(
        "settings",
        [{"clusters": 0.4}, {"text_share": 0.0}, {"text_share": 1.0}, {"text_weight": 0.0}, {"neighbours": 3}],
    )
    def test_every_parameter_does_something(self, graphs: TokenGraphs, settings: dict[str, Any]) -> None:
        plain, other = see(graphs, Recoverable()), see(graphs, Recoverable(**settings))
        assert not torch.allclose(plain[0], other[0], atol=1e-4)

    def test_the_orders_hold_the_same_tokens(self, graphs: TokenGraphs) -> None:
        raster, ids = see(graphs, Recoverable(clusters=0.3))
        published, theirs = see(graphs, Recoverable(clusters=0.3, order="published"))
        assert (ids[:, 1:] > ids[:, :-1]).all() and not torch.equal(ids, theirs)
        assert torch.equal(theirs.sort(dim=1).values, ids)
        torch.testing.assert_close(choose.take(published, theirs.argsort(dim=1)), raster, atol=1e-6, rtol=0)

    def test_the_question_recovers(self, graphs: TokenGraphs) -> None:
        method, pixels = Recoverable(text_share=1.0, clusters=0.0), pictures(1)
        carved_ = rewrite(graphs, method.stages(graphs.geometry, 16, None)).graphs
        with torch.no_grad():
            first, second = (carved_.see(pixels, *prompt([9], visual=1, seed=s))[1]["connector"] for s in (0, 1))
        assert not torch.equal(first, second)

    def test_on_the_recorded_inputs(self) -> None:
        pixels, ids = golden_inputs()
        with torch.no_grad():
            features, kept, _ = carved(Recoverable(), 192).graphs.see(pixels, ids, torch.full((4,), ids.shape[1]))
        assert features.shape == (4, 192, 64) and features.isfinite().all()
        assert (kept["connector"][:, 1:] > kept["connector"][:, :-1]).all()


def test_a_tower_without_cls_is_refused() -> None:
    graphs = families.capture(build("llama", "siglip", feature_layer=-2))
    with pytest.raises(MethodError, match="no \\[CLS\\] token"):
        rewrite(graphs, Recoverable().stages(graphs.geometry, 16, None))


def test_a_tower_that_is_used_up_is_refused() -> None:
    graphs = families.capture(build(feature_layer=-1))
    with pytest.raises(TapNotFound, match="vision.layers.5 is the tower's last layer"):
        rewrite(graphs, Recoverable().stages(graphs.geometry, 16, None))
