"""Layers in two halves, cuts between attention and MLP, biases, and merges that take [CLS] along."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from models import TOTAL, Tower, build, pictures
from torch import Tensor
from watcher import Watcher

from tokcarve.passes import families
from tokcarve.passes.blocks import Feed
from tokcarve.passes.choose import top_in_order
from tokcarve.passes.errors import MethodError, TapNotFound
from tokcarve.passes.graph import TokenGraphs, thread
from tokcarve.passes.insert import StageRecord, expand_layers, rewrite
from tokcarve.passes.invariants import check_carved, rows_after
from tokcarve.passes.stage import Carry, Outcome, Signals, Stage

LAST = "vision.layers.4"
TOWERS: list[Tower] = ["clip", "siglip"]


@pytest.fixture(scope="module")
def graphs() -> TokenGraphs:
    return families.capture(build())


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return pictures(3)


@torch.no_grad()
def run(graphs: TokenGraphs, stages: Sequence[Stage], pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    result = rewrite(graphs, stages)
    check_carved(result.graphs, result.schedule)
    features, kept = result.graphs.vision(pixels)
    return features, kept


def strongest(signals: Signals, carry: Carry) -> Outcome:
    return {"score": signals["tokens"].norm(dim=-1)}


def cut(site: str, keep: int, **changes: Any) -> Stage:
    return replace(Stage(site=site, reads=("tokens",), rule=strongest, how="choose", keep=keep), **changes)


class TestExpanding:
    @pytest.mark.parametrize("tower", TOWERS)
    @pytest.mark.parametrize("layers", [[0], [4], [1, 3], [0, 1, 2, 3, 4]])
    def test_halves_make_the_whole(self, tower: Tower, layers: list[int], pixels: Tensor) -> None:
        vision = families.capture(build("llama", tower)).vision
        code, nodes, names = vision.code, len(vision.graph.nodes), set(dict(vision.named_modules()))
        halves = expand_layers(vision, [f"vision.layers.{i}" for i in layers])
        with torch.no_grad():
            (expected, _), (found, kept) = vision(pixels), halves(pixels)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        assert kept == {} and thread(halves) == thread(vision)
        assert (vision.code, len(vision.graph.nodes), set(dict(vision.named_modules()))) == (code, nodes, names)
        sites = [node.meta["site"] for node in halves.graph.nodes if "site" in node.meta]
        before = [node.meta["site"] for node in vision.graph.nodes if "site" in node.meta]
        inside = [f"vision.layers.{i}.attention" for i in layers]
        assert [site for site in sites if site not in inside] == before
        assert all(sites[sites.index(site) + 1] == site.removesuffix(".attention") for site in inside)
        assert {w.data_ptr() for w in halves.parameters()} == {w.data_ptr() for w in vision.parameters()}

    def test_masks_go_through_both_halves(self, graphs: TokenGraphs, pixels: Tensor) -> None:
        def rule(signals: Signals, carry: Carry) -> Outcome:
            return {**strongest(signals, carry), "count": torch.tensor([20, 33, 64])[: len(signals["tokens"])]}

        masked = rewrite(graphs, [cut("vision.layers.1", TOTAL, how="mask", rule=rule)]).graphs.vision
        halves = expand_layers(masked, ["vision.layers.1", "vision.layers.3"])
        with torch.no_grad():
            torch.testing.assert_close(halves(pixels)[0], masked(pixels)[0], atol=1e-6, rtol=0)
            assert (masked(pixels)[0] - graphs.vision(pixels)[0]).abs().max() > 1e-2


class TestSitesInside:
    @pytest.mark.parametrize("layer", [0, 2, 4])
    def test_the_mlp_sees_fewer_rows(self, graphs: TokenGraphs, layer: int) -> None:
        site = f"vision.layers.{layer}.attention"
        result = rewrite(graphs, [cut(site, 10)])
        check_carved(result.graphs, result.schedule)
        assert result.schedule == (StageRecord(site=site, total=TOTAL, keep=10, how="choose"),)
        counts = rows_after(result.graphs, result.schedule)
        assert (counts[site], counts[f"vision.layers.{layer}"], counts["connector"]) == (10, 10, 10)
        module = result.graphs.vision
        (feed,) = (n for n in module.graph.nodes if n.target == f"layers_{layer}_feed")
        assert isinstance(module.get_submodule(feed.target), Feed)
        assert feed.args[0].meta["val"].shape[1] == feed.meta["val"].shape[1] == 11

    def test_tokens_that_have_attended_and_not_passed_the_mlp(self, graphs: TokenGraphs, pixels: Tensor) -> None:
        features, kept = run(graphs, [cut("vision.layers.4.attention", 9)], pixels)
        with torch.no_grad():
            rows = attended(graphs, 4, entering(graphs, pixels, 4), None)
            chosen = top_in_order(rows[:, 1:].norm(dim=2), 9)
            whole, _ = graphs.vision(pixels)
        assert torch.equal(kept["vision.layers.4.attention"], chosen)
        # behind the last attention every row goes its own way
        torch.testing.assert_close(features, whole.gather(1, spread(chosen, 48)), atol=1e-5, rtol=0)

    @pytest.mark.parametrize("tap", ["cls_attention", "attention", "keys", "values"])
    def test_attention_is_read_where_it_happens(self, graphs: TokenGraphs, pixels: Tensor, tap: str) -> None:
        def rule(signals: Signals, carry: Carry) -> Outcome:
            return {"score": torch.zeros(signals[tap].shape[0], 50)}

        inside, behind = cut("vision.layers.2.attention", 50), cut("vision.layers.2", 9, reads=(tap,), rule=rule)
        with pytest.raises(TapNotFound, match="vision.layers.2 is read at vision.layers.2.attention in this graph"):
            rewrite(graphs, [inside, behind])
        run(graphs, [inside, replace(behind, reads=("tokens",), rule=strongest)], pixels)

        watchers = [
            Watcher(rewrite(graphs, [cut(site, TOTAL, how="observe", reads=(tap,), rule=nothing)]).graphs.vision)
            for site in ("vision.layers.2", "vision.layers.2.attention")
        ]
        with torch.no_grad():
            for watcher in watchers:
                watcher.run(pixels)
        one, other = (w.seen[f"select_{tap}_l2{tag}"] for w, tag in zip(watchers, ("", "_attention"), strict=True))
        assert torch.equal(one, other)

    def test_stages_are_ordered_by_depth(self, graphs: TokenGraphs) -> None:
        inside, behind = cut("vision.layers.2.attention", 9), cut("vision.layers.2", 9)
        with pytest.raises(MethodError, match="vision.layers.2.attention comes after a later site"):
            rewrite(graphs, [behind, inside])

    def test_two_stages_at_one_site_are_refused(self, graphs: TokenGraphs) -> None:
        inside = cut("vision.layers.2.attention", 9)
        with pytest.raises(MethodError, match="vision.layers.2.attention comes after a later site"):
            rewrite(graphs, [inside, replace(inside, keep=5)])

    @pytest.mark.parametrize("site", ["vision.layers.5.attention", "connector.attention", "pixels.attention"])
    def test_a_layer_that_is_not_there_is_refused(self, graphs: TokenGraphs, site: str) -> None:
        with pytest.raises(MethodError, match=f"no site '{site}' in this model"):
            rewrite(graphs, [cut(site, 9)])


def nothing(signals: Signals, carry: Carry) -> Outcome:
    return {}


def spread(index: Tensor, width: int) -> Tensor:
    return index.unsqueeze(2).expand(-1, -1, width)


def attended(graphs: TokenGraphs, layer: int, hidden: Tensor, bias: Tensor | None) -> Tensor:
    """The first half of a layer, written out; `bias` [batch, rows] is added to the logits of every key."""
    block = graphs.parts.vision_blocks[layer]
    rows = block.normed(hidden)
    query, key, value = (block.project(which, rows) for which in "qkv")
    logits = query @ key.transpose(2, 3) * block.scale
    logits = logits if bias is None else logits + bias[:, None, None]
    mixed = (torch.softmax(logits, dim=3) @ value).transpose(1, 2).flatten(2)
    added: Tensor = block.layer.get_submodule("self_attn.out_proj")(mixed)
    return hidden + added


def entering(graphs: TokenGraphs, pixels: Tensor, layer: int) -> Tensor:
    rows: Tensor = graphs.parts.patches(pixels)
    for block in graphs.parts.vision_blocks[:layer]:
        rows = block(rows)
    return rows


def folded(count: int) -> Callable[[Signals, Carry], Outcome]:
    """The last 2 * count tokens become count, each the mean of the patches it holds; the rest stay."""

    def rule(signals: Signals, carry: Carry) -> Outcome:
        batch, n, _ = signals["tokens"].shape
        size = carry.get("size", torch.ones(batch, n))
        index = torch.tensor([*range(n - 2 * count), *range(n - 2 * count, n, 2)]).expand(batch, -1)
        sources = torch.arange(n - 2 * count + 1, n, 2).expand(batch, -1)
        came = torch.cat([torch.zeros(n - 2 * count, count), torch.eye(count)]) * size.gather(1, sources).unsqueeze(1)
        own = size.gather(1, index)
        grown = own + came.sum(dim=2)
        made = {"weights": came / grown.unsqueeze(2), "own": own / grown, "sources": sources, "index": index}
        return {**made, "size": grown, "bias": grown.log()}

    return rule


def means(rows: Tensor, size: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """What `folded` does to rows and their sizes, pair by pair."""
    start = rows.shape[1] - 2 * count
    both = size[:, start:].reshape(len(size), count, 2)
    pairs = rows[:, start:].reshape(len(rows), count, 2, rows.shape[2]) * (
        both / both.sum(dim=2, keepdim=True)
    ).unsqueeze(3)
    return torch.cat([rows[:, :start], pairs.sum(dim=2)], dim=1), torch.cat([size[:, :start], both.sum(dim=2)], dim=1)


@torch.no_grad()
def eager(graphs: TokenGraphs, pixels: Tensor, plan: Mapping[str, int], biased: bool) -> Tensor:
    """The tower as a plain loop that folds `plan[site]` tokens and adds log(size) to later attention."""
    prefix, hidden = graphs.geometry.vision.prefix, graphs.parts.patches(pixels)
    size = torch.ones(hidden.shape[:2])
    for i, block in enumerate(graphs.parts.vision_blocks):
        hidden = attended(graphs, i, hidden, size.log() if biased else None)
        hidden, size = means(hidden, size, plan.get(f"vision.layers.{i}.attention", 0))
        hidden, size = means(block.feed(hidden), size, plan.get(f"vision.layers.{i}", 0))
    features: Tensor = graphs.parts.connector(hidden[:, prefix:])
    return features


class TestBias:
    @pytest.mark.parametrize("tower", TOWERS)
    @pytest.mark.parametrize("biased", [True, False])
    @pytest.mark.parametrize(
        "plan",
        [
            {"vision.layers.0": 20},
            {"vision.layers.1.attention": 20},
            {"vision.layers.1.attention": 20, "vision.layers.3.attention": 14},
            {"vision.layers.0.attention": 9, "vision.layers.0": 9, "vision.layers.2": 20, LAST: 3},
        ],
    )
    def test_it_counts_a_token_as_often_as_it_holds_patches(
        self, tower: Tower, biased: bool, plan: dict[str, int], pixels: Tensor
    ) -> None:
        graphs, left, stages = families.capture(build("llama", tower)), TOTAL, []
        for site, count in plan.items():
            left -= count
            stages.append(cut(site, left, how="merge", rule=folded(count), carries=("size",), biases=biased))
        features, kept = run(graphs, stages, pixels)
        assert features.shape[1] == left and list(kept) == list(plan)
        torch.testing.assert_close(features, eager(graphs, pixels, plan, biased), atol=2e-5, rtol=0)
        assert (features - eager(graphs, pixels, plan, not biased)).abs().max() > 1e-3

    def test_taps_of_later_layers_see_it(self, graphs: TokenGraphs, pixels: Tensor) -> None:
        merge = cut("vision.layers.1", 44, how="merge", rule=folded(20), carries=("size",), biases=True)
        look = cut("vision.layers.2", 44, how="observe", reads=("cls_attention",), rule=nothing)
        rows = []
        for stage in (merge, replace(merge, biases=False)):
            watcher = Watcher(rewrite(graphs, [stage, look]).graphs.vision)
            with torch.no_grad():
                watcher.run(pixels)
            rows.append(watcher.seen["select_cls_attention_l2"])
        size = torch.cat([torch.ones(1 + 24), torch.full((20,), 2.0)])
        expected = rows[1] * size / (rows[1] * size).sum(dim=2, keepdim=True)
        torch.testing.assert_close(rows[0], expected, atol=1e-6, rtol=1e-5)


class TestTakingCls:
    @pytest.mark.parametrize("named", [True, False])
    def test_it_is_token_minus_one_and_no_prefix_is_left(
        self, graphs: TokenGraphs, pixels: Tensor, named: bool
    ) -> None:
        index, sources = torch.tensor([-1, 0, 7, 63]), torch.tensor([-1, 5, 6, 62])
        draw = torch.Generator().manual_seed(0)
        weights, own = torch.rand(4, 4 if named else TOTAL + 1, generator=draw), torch.rand(4, generator=draw)

        def rule(signals: Signals, carry: Carry) -> Outcome:
            batch = signals["tokens"].shape[0]
            some = {"sources": sources.expand(batch, -1)} if named else {}
            shared = {"index": index.expand(batch, -1), "own": own.expand(batch, -1)}
            return {**shared, **some, "weights": weights.expand(batch, -1, -1)}

        stage = cut(LAST, 4, how="merge", rule=rule, takes_cls=True)
        features, kept = run(graphs, [stage], pixels)
        with torch.no_grad():
            rows = entering(graphs, pixels, 5)  # [CLS] is row 0, patch i is row 1 + i
            picked = rows[:, [0, 6, 7, 63]] if named else rows
            merged = weights @ picked + own[:, None] * rows[:, [0, 1, 8, 64]]
            expected = graphs.parts.connector(merged)
        assert features.shape == (3, 4, 48) and kept[LAST].tolist() == [[-1, 0, 7, 63]] * 3
        torch.testing.assert_close(features, expected, atol=2e-5, rtol=0)

    def test_a_later_stage_counts_it_among_the_tokens(self, graphs: TokenGraphs, pixels: Tensor) -> None:
        def rule(signals: Signals, carry: Carry) -> Outcome:
            batch = signals["tokens"].shape[0]
            index = torch.arange(-1, 9).expand(batch, -1)
            return {"index": index, "weights": torch.zeros(batch, 10, TOTAL + 1), "own": torch.ones(batch, 10)}

        take = cut(LAST, 10, how="merge", rule=rule, takes_cls=True)
        whole, ids = run(graphs, [take], pixels)
        features, kept = run(graphs, [take, cut("connector", 3)], pixels)
        chosen = top_in_order(whole.norm(dim=2), 3)
        assert torch.equal(kept["connector"], ids[LAST].gather(1, chosen))
        torch.testing.assert_close(features, whole.gather(1, spread(chosen, 48)), atol=1e-5, rtol=0)
