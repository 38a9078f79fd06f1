"""Inserting stages: the new graph does what the stage says, the old one stays what it was."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from models import TOTAL, build, config, pictures
from torch import Tensor

from tokcarve.passes import families
from tokcarve.passes.choose import top_in_order
from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.graph import TokenGraphs, thread
from tokcarve.passes.insert import RewriteResult, StageRecord, insert_stage, rewrite
from tokcarve.passes.invariants import check_carved
from tokcarve.passes.methods.flowcut import FlowCut
from tokcarve.passes.methods.vtc_cls import VtcCls
from tokcarve.passes.stage import Carry, Outcome, Signals, Stage

LAYERS_USED = 5


def strongest(signals: Signals, carry: Carry) -> Outcome:
    """Tokens by their norm."""
    return {"score": signals["tokens"].norm(dim=-1)}


def first_ones(signals: Signals, carry: Carry) -> Outcome:
    """Falling scores: the first tokens stay."""
    tokens = signals["tokens"]
    return {"score": -torch.arange(tokens.shape[1], device=tokens.device).float().expand(tokens.shape[:2])}


def sized(signals: Signals, carry: Carry) -> Outcome:
    """Nine tokens of weight 1."""
    index = torch.arange(9).expand(signals["tokens"].shape[0], -1)
    return {"index": index, "weights": torch.zeros(1, 9, 64), "own": torch.ones(index.shape), "bias": index.float()}


def last_ones(signals: Signals, carry: Carry) -> Outcome:
    return {"score": -first_ones(signals, carry)["score"]}


def cut(site: str, keep: int, **changes: Any) -> Stage:
    return replace(Stage(site=site, reads=("tokens",), rule=strongest, how="choose", keep=keep), **changes)


@pytest.fixture(scope="module")
def graphs() -> TokenGraphs:
    return families.capture(build())


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    return pictures(3)


@torch.no_grad()
def run(result: RewriteResult | TokenGraphs, pixels: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    graphs = result.graphs if isinstance(result, RewriteResult) else result
    features, kept = graphs.vision(pixels)
    return features, kept


def test_the_input_graph_is_untouched(graphs: TokenGraphs, pixels: Tensor) -> None:
    code, nodes = graphs.vision.code, len(graphs.vision.graph.nodes)
    before, _ = run(graphs, pixels)
    names = {name for name, _ in graphs.vision.named_modules()}
    once = rewrite(graphs, FlowCut().stages(graphs.geometry, 16, None))
    code_once = once.graphs.vision.code
    insert_stage(once.graphs, cut("connector", 4))
    assert (graphs.vision.code, len(graphs.vision.graph.nodes)) == (code, nodes)
    assert {name for name, _ in graphs.vision.named_modules()} == names
    assert (thread(graphs.vision).count, thread(graphs.vision).index) == (TOTAL, None)
    assert torch.equal(run(graphs, pixels)[0], before)
    assert once.graphs.vision.code == code_once
    again = rewrite(graphs, FlowCut().stages(graphs.geometry, 16, None))
    assert again.graphs.vision.code == code_once, "the same plan writes the same graph"


def test_weights_are_shared_not_copied(graphs: TokenGraphs) -> None:
    carved = rewrite(graphs, VtcCls().stages(graphs.geometry, 16, None)).graphs
    own = {t.data_ptr() for t in graphs.vision.parameters()}
    assert {t.data_ptr() for t in carved.vision.parameters()} == own
    assert carved.language is graphs.language and carved.decode is graphs.decode


@pytest.mark.parametrize("site", ["vision.layers.0", "vision.layers.2", "vision.layers.4", "connector"])
@pytest.mark.parametrize("keep", [1, 17, TOTAL])
def test_a_cut_leaves_exactly_its_count(graphs: TokenGraphs, pixels: Tensor, site: str, keep: int) -> None:
    result = rewrite(graphs, [cut(site, keep)])
    check_carved(result.graphs, result.schedule)
    features, kept = run(result, pixels)
    assert features.shape == (3, keep, 48)
    assert list(kept) == [site]
    assert kept[site].dtype == torch.int64
    ids = kept[site]
    assert (ids[:, 1:] > ids[:, :-1]).all() and (ids >= 0).all() and (ids < TOTAL).all()
    assert result.schedule == (StageRecord(site=site, total=TOTAL, keep=keep, how="choose"),)
    assert result.modified


def test_a_cut_takes_the_tokens_it_chose(graphs: TokenGraphs, pixels: Tensor) -> None:
    whole, _ = run(graphs, pixels)
    chosen = top_in_order(whole.norm(dim=-1), 9)
    for site in ("connector", "vision.layers.4"):
        features, kept = run(rewrite(graphs, [cut(site, 9)]), pixels)
        if site == "connector":
            assert torch.equal(kept[site], chosen)
        # the connector works token by token: cutting right before it or after it is the same
        index = kept[site].unsqueeze(-1).expand(-1, -1, 48)
        torch.testing.assert_close(features, torch.gather(whole, 1, index), atol=1e-5, rtol=0)


def test_keeping_all_is_the_identity(graphs: TokenGraphs, pixels: Tensor) -> None:
    whole, _ = run(graphs, pixels)
    empty = rewrite(graphs, [])
    assert (empty.modified, empty.schedule, empty.graphs.vision) == (False, (), graphs.vision)
    every = [cut(f"vision.layers.{i}", TOTAL) for i in range(LAYERS_USED)]
    features, kept = run(rewrite(graphs, every), pixels)
    torch.testing.assert_close(features, whole, atol=1e-6, rtol=0)
    assert all(torch.equal(ids, torch.arange(TOTAL).expand(3, -1)) for ids in kept.values())


def test_kept_ids_are_those_of_the_original_image(graphs: TokenGraphs, pixels: Tensor) -> None:
    stages = [
        cut("vision.layers.1", 20, rule=last_ones),
        cut("vision.layers.3", 8, rule=first_ones),
        cut("connector", 3, rule=last_ones),
    ]
    result = rewrite(graphs, stages)
    check_carved(result.graphs, result.schedule)
    features, kept = run(result, pixels)
    assert features.shape[1] == 3
    assert {site: ids[0].tolist() for site, ids in kept.items()} == {
        "vision.layers.1": list(range(44, 64)),
        "vision.layers.3": list(range(44, 52)),
        "connector": [49, 50, 51],
    }
    assert [(s.total, s.keep) for s in result.schedule] == [(64, 20), (20, 8), (8, 3)]
    assert thread(result.graphs.vision).count == 3


def test_carries_follow_the_tokens(graphs: TokenGraphs, pixels: Tensor) -> None:
    def mark(signals: Signals, carry: Carry) -> Outcome:
        return {**last_ones(signals, carry), "mark": last_ones(signals, carry)["score"]}

    def read(signals: Signals, carry: Carry) -> Outcome:
        return {"score": -carry["mark"], "mark": carry["mark"]}

    stages = [
        cut("vision.layers.0", 30, rule=mark, carries=("mark",)),
        cut("vision.layers.2", 4, rule=read, carries=("mark",)),
    ]
    _, kept = run(rewrite(graphs, stages), pixels)
    assert kept["vision.layers.2"][0].tolist() == [34, 35, 36, 37]


def masked(counts: Sequence[int]) -> Any:
    """The strongest tokens stay alive, `counts` of them image by image."""

    def rule(signals: Signals, carry: Carry) -> Outcome:
        batch = signals["tokens"].shape[0]
        return {**strongest(signals, carry), "count": torch.tensor(counts)[:batch]}

    return rule


def test_masking_and_cutting_give_the_same(graphs: TokenGraphs, pixels: Tensor) -> None:
    mask = cut("vision.layers.1", TOTAL, how="mask", rule=masked([12] * 3))
    result = rewrite(graphs, [mask, cut("vision.layers.4", 12)])
    check_carved(result.graphs, result.schedule)
    hidden, by_mask = run(result, pixels)
    gathered, by_cut = run(rewrite(graphs, [cut("vision.layers.1", 12)]), pixels)
    assert torch.equal(by_mask["vision.layers.4"], by_cut["vision.layers.1"])
    torch.testing.assert_close(hidden, gathered, atol=1e-5, rtol=0)
    whole, _ = run(rewrite(graphs, [cut("vision.layers.4", 12)]), pixels)
    assert (whole - gathered).abs().max() > 1e-2, "dropped tokens must have mattered"


def test_every_image_is_masked_by_its_own_count(graphs: TokenGraphs, pixels: Tensor) -> None:
    counts = [40, 12, 25]
    mask = cut("vision.layers.1", TOTAL, how="mask", rule=masked(counts))
    _, together = run(rewrite(graphs, [mask, cut("vision.layers.3", 12)]), pixels)
    for i, count in enumerate(counts):
        stages = [cut("vision.layers.1", count), cut("vision.layers.3", 12)]
        _, alone = run(rewrite(graphs, stages), pixels[i : i + 1])
        assert torch.equal(together["vision.layers.3"][i], alone["vision.layers.3"][0])


def halves(signals: Signals, carry: Carry) -> Outcome:
    """Neighbours averaged in pairs; the second of each pair stands for both."""
    batch, n, _ = signals["tokens"].shape
    weights = torch.zeros(batch, n // 2, n)
    places = torch.arange(n // 2)
    weights[:, places, 2 * places] = weights[:, places, 2 * places + 1] = 0.5
    return {"weights": weights, "index": (2 * places + 1).expand(batch, -1)}


def test_a_merge_replaces_tokens_by_weighted_sums(graphs: TokenGraphs, pixels: Tensor) -> None:
    whole, _ = run(graphs, pixels)
    result = rewrite(graphs, [cut("connector", 32, how="merge", rule=halves)])
    check_carved(result.graphs, result.schedule)
    features, kept = run(result, pixels)
    torch.testing.assert_close(features, whole.view(3, 32, 2, 48).mean(dim=2), atol=1e-5, rtol=0)
    assert kept["connector"][0].tolist() == list(range(1, 64, 2))


@pytest.mark.parametrize("first", ["choose", "mask"])
def test_a_merge_inside_the_tower_after_another_stage(graphs: TokenGraphs, pixels: Tensor, first: Any) -> None:
    rule = last_ones if first == "choose" else masked([20] * 3)
    before = cut("vision.layers.0", 20 if first == "choose" else TOTAL, how=first, rule=rule)
    merge = cut("vision.layers.2", 10 if first == "choose" else 32, how="merge", rule=halves)
    result = rewrite(graphs, [before, merge])
    check_carved(result.graphs, result.schedule)
    features, kept = run(result, pixels)
    assert features.shape[1] == merge.keep
    if first == "choose":
        assert kept["vision.layers.2"][0].tolist() == list(range(45, 64, 2))


def test_observing_changes_nothing(graphs: TokenGraphs, pixels: Tensor) -> None:
    observed = [cut(f"vision.layers.{i}", TOTAL, how="observe") for i in range(3)]
    result = rewrite(graphs, observed)
    assert result.schedule == ()
    features, kept = run(result, pixels)
    assert kept == {} and torch.equal(features, run(graphs, pixels)[0])


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([cut("vision.layers.5", 4)], "no site 'vision.layers.5' .* vision.layers.0, .* vision.layers.4, connector"),
        ([cut("language.layers.3", 4)], "no site 'language.layers.3'"),
        ([cut("vision.layers.3", 9), cut("vision.layers.1", 4)], "vision.layers.1 comes after a later site"),
        ([cut("vision.layers.3", 9), cut("vision.layers.3", 4)], "stage at vision.layers.3 comes after"),
        (
            [cut("vision.layers.3", 4, reads=("saliency",))],
            "'saliency'; taps there are tokens, cls_attention, attention, ",
        ),
        ([cut("connector", 4, reads=("cls_attention",))], "connector .* 'cls_attention', .* vision layer"),
        ([cut("connector", 4, reads=("values",))], "connector .* 'values', .* vision layer"),
        ([cut("vision.layers.3", 0)], "keeps 0 of 64 tokens; choose 1..64"),
        ([cut("vision.layers.3", 65)], "keeps 65 of 64 tokens; choose 1..64"),
        ([cut("vision.layers.1", 9), cut("vision.layers.3", 10)], "keeps 10 of 9 tokens; choose 1..9"),
        ([cut("pixels", 4)], "choose at pixels: only an image is resized"),
        ([cut("vision.layers.1.attention", 4, reads=("next_keys",))], "reads the layer behind"),
        ([cut("vision.layers.1", 9), cut("vision.layers.4", 4, how="merge", takes_cls=True)], "behind an earlier cut"),
        (
            [cut("vision.layers.1", 9, rule=sized, how="merge", biases=True), cut("vision.layers.3", 4)],
            "loses the sizes",
        ),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(graphs: TokenGraphs, stages: list[Stage], message: str) -> None:
    code = graphs.vision.code
    with pytest.raises(MethodError, match=message):
        rewrite(graphs, stages)
    assert graphs.vision.code == code


def test_a_tower_without_cls_serves_every_tap_but_the_cls_row() -> None:
    graphs = families.capture(build("llama", "siglip"))
    with pytest.raises(MethodError, match="siglip tower has no \\[CLS\\] token"):
        rewrite(graphs, VtcCls().stages(graphs.geometry, 8, None))

    def rule(signals: Signals, carry: Carry) -> Outcome:
        return {"score": signals["values"].mean(dim=1).norm(dim=-1)}

    result = rewrite(graphs, [cut("vision.layers.2", 8, reads=("values",), rule=rule)])
    check_carved(result.graphs, result.schedule)
    assert run(result, pictures(2))[0].shape == (2, 8, 48)


def large() -> Any:
    """The shape of LLaVA-1.5-7B."""
    made = config("llama", kv_heads=32)
    vision, text = made.vision_config, made.text_config
    vision.hidden_size, vision.intermediate_size, vision.num_hidden_layers = 1024, 4096, 24
    vision.num_attention_heads, vision.image_size = 16, 336
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = 4096, 11008, 32
    text.num_attention_heads, text.vocab_size, text.head_dim = 32, 32064, 128
    return made


def test_a_7b_model_is_rewritten_in_seconds_without_weights() -> None:
    started = time.monotonic()
    graphs = families.capture(families.empty(large()))
    geometry: Geometry = graphs.geometry
    result = rewrite(graphs, FlowCut().stages(geometry, 64, None))
    check_carved(result.graphs, result.schedule)
    assert time.monotonic() - started < 20
    assert all(p.is_meta for p in result.graphs.vision.parameters())
    assert sum(p.numel() for p in graphs.language.parameters()) > 6e9
    assert (geometry.total, result.schedule[-1].keep, geometry.vision.layers_used) == (576, 64, 23)
