"""AS-ViT: its score by hand and by plain loops, thresholds per image, the counts that stand in for them, refusals."""

from typing import Any

import pytest
import torch
from models import TOTAL, build, config, pictures
from torch import Tensor
from watcher import Watcher

from tokcarve.passes import families
from tokcarve.passes.calibrate import frozen_counts, observe
from tokcarve.passes.errors import MethodError
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.insert import rewrite
from tokcarve.passes.methods.as_vit import ASViT, weighted
from tokcarve.passes.stage import Frozen, Look, Stage
from tokcarve.recipes.carve import planned

CUTS = (1, 2, 3)  # layers 3, 6 and 9 of 12, of the five that are used
START = (0.001, 0.002, 0.003)


@pytest.fixture(scope="module")
def graphs() -> TokenGraphs:
    return families.capture(build())


def told(stages: tuple[Stage, ...]) -> list[tuple[int, str, int]]:
    return [(int(stage.site.rpartition(".")[2]), stage.how, stage.keep) for stage in stages]


def test_the_score_by_hand() -> None:
    # two heads, [CLS] and three patches
    attention = torch.tensor([[[0.4, 0.3, 0.2, 0.1], [0.1, 0.1, 0.2, 0.6]]])
    norms = torch.tensor([[[5.0, 1.0, 2.0, 0.0], [1.0, 3.0, 2.0, 0.0]]])
    # shares of the heads: 1/4 and 3/4, 1/2 and 1/2, none
    expected = torch.tensor([[0.3 / 4 + 0.1 * 3 / 4, 0.2, 0.0]])
    torch.testing.assert_close(weighted(attention, norms), expected, atol=1e-7, rtol=0)


def test_heads_that_give_alike_are_a_mean() -> None:
    attention = torch.softmax(torch.randn(2, 4, 9, generator=torch.Generator().manual_seed(0)), dim=-1)
    found = weighted(attention, torch.full((2, 4, 9), 3.0))
    torch.testing.assert_close(found, attention.mean(dim=1)[:, 1:], atol=1e-6, rtol=0)


def looked(layer: Any, rows: Tensor) -> tuple[Tensor, list[float]]:
    """What a layer of the model makes of rows [n, hidden] of one image, and the score of every patch, in loops."""
    own, heads, width = layer.self_attn, 4, 8
    normed = layer.layer_norm1(rows)
    query, key, value = (project(normed) for project in (own.q_proj, own.k_proj, own.v_proj))
    attended, norms = [], []
    for head in range(heads):
        at = slice(head * width, (head + 1) * width)
        shares = torch.stack([torch.softmax(key[:, at] @ row * width**-0.5, dim=0) for row in query[:, at]])
        attended.append(shares[0].tolist())
        norms.append([sum(float(x) ** 2 for x in shares[i] @ value[:, at]) ** 0.5 for i in range(len(rows))])
    scores = []
    for i in range(1, len(rows)):
        whole = sum(norms[head][i] for head in range(heads))
        scores.append(sum(attended[head][i] * norms[head][i] / whole for head in range(heads)))
    made = layer(rows[None], attention_mask=None)
    return (made[0] if isinstance(made, tuple) else made)[0], scores


@torch.no_grad()
def by_loops(image: Tensor, tokens: int, scale: float, *, summed: bool = False) -> tuple[list[int], int, list[int]]:
    """AS-ViT with thresholds on one image; rows are really removed. Counts behind the first two cuts, how many pass
    the last, and what it leaves."""
    tower = build().model.vision_tower
    rows = tower.pre_layrnorm(tower.embeddings(image[None]))[0]
    alive, total, counts = list(range(TOTAL)), [0.0] * TOTAL, []
    limits = dict(zip(CUTS, (0.004, 0.012, 0.02) if summed else START, strict=True))
    for number, layer in enumerate(tower.encoder.layers[: CUTS[-1] + 1]):
        rows, fresh = looked(layer, rows)
        # of twelve layers the third is the first that counts; of five the first
        total = [a + b for a, b in zip(total, fresh, strict=True)] if summed else fresh
        if number not in limits:
            continue
        passing = sum(score > limits[number] * scale * 196 / TOTAL for score in total)
        left = tokens if number == CUTS[-1] else max(passing, tokens)
        stay = sorted(sorted(range(len(alive)), key=lambda i: (-total[i], i))[:left])
        alive, total = [alive[i] for i in stay], [total[i] for i in stay]
        rows = rows[[0, *(i + 1 for i in stay)]]
        counts.append(left)
    return counts[:2], passing, alive


@pytest.mark.parametrize(("scale", "summed"), [(1.0, False), (1.7, False), (3.0, False), (1.0, True), (1.6, True)])
def test_thresholds_do_what_plain_loops_do(graphs: TokenGraphs, scale: float, summed: bool) -> None:
    method = ASViT(form="threshold", scale=scale, accumulate=summed)
    pixels = pictures(4, seed=2)
    found = observe(rewrite(graphs, method.stages(graphs.geometry, 8, None)), pixels)
    for image, pixel in zip(found, pixels, strict=True):
        counts, passing, kept = by_loops(pixel, 8, scale, summed=summed)
        assert list(image.counts) == ["vision.layers.1", "vision.layers.2"]
        assert list(image.counts.values()) == counts
        assert image.passing == {"vision.layers.3": passing}
        assert image.kept == set(kept)


def test_what_the_thresholds_of_the_loops_see(graphs: TokenGraphs) -> None:
    """The test above has power: counts differ between images, cuts and scales, above the least and below all."""
    seen = [by_loops(pixel, 8, scale) for pixel in pictures(4, seed=2) for scale in (1.0, 1.7)]
    counts = {count for first, *_ in seen for count in first}
    assert len(counts) > 4 and min(counts) < TOTAL // 2 and any(8 < count < TOTAL for count in counts)
    assert len({passing for _, passing, _ in seen}) > 2 and any(passing > 8 for _, passing, _ in seen)


@pytest.mark.parametrize("summed", [False, True])
def test_static_with_the_counts_of_one_image_keeps_what_the_thresholds_keep(graphs: TokenGraphs, summed: bool) -> None:
    method, site = ASViT(accumulate=summed), "vision.layers.3"
    per_image = method.dynamic()
    assert per_image == ASViT(form="threshold", accumulate=summed)
    for pixels in pictures(3, seed=4).split(1):
        exact = rewrite(graphs, per_image.stages(graphs.geometry, 8, None))
        (seen,) = observe(exact, pixels)
        static = rewrite(graphs, method.stages(graphs.geometry, 8, Frozen(counts=seen.counts)))
        with torch.no_grad():
            masked, by_mask = exact.graphs.vision(pixels)
            cut, by_cut = static.graphs.vision(pixels)
        assert torch.equal(by_cut[site], by_mask[site]) and static.schedule[-1].keep == 8
        torch.testing.assert_close(cut, masked, atol=1e-5, rtol=0)


def test_the_scale_is_solved_on_samples(graphs: TokenGraphs) -> None:
    method, tokens, pixels = ASViT(), 20, pictures(10, seed=6)
    decision = method.decides(graphs.geometry, tokens)
    assert decision is not None
    looks = [Look() for _ in pixels]
    while (form := decision.counting(looks)) is not None:
        seen = observe(rewrite(graphs, form.stages(graphs.geometry, tokens, None)), pixels)
        looks = [
            Look(counted=[*look.counted, {"counts": one.counts, "passing": one.passing}])
            for look, one in zip(looks, seen, strict=True)
        ]
    settled, spread = decision.settle(looks)
    assert isinstance(settled, ASViT) and settled.scale is not None and settled.form == "static"
    by_hand = [by_loops(pixel, tokens, settled.scale) for pixel in pixels]
    passing = [one for _, one, _ in by_hand]
    assert abs(sum(passing) / len(passing) - tokens) < 0.5 and spread == {"passing": [min(passing), max(passing)]}
    assert min(passing) < tokens < max(passing), "images differ"
    assert settled.decides(graphs.geometry, tokens) is None
    # the counts before the last are the means of that form, or a quantile
    per_image = settled.dynamic()
    assert per_image is not None
    seen = observe(rewrite(graphs, per_image.stages(graphs.geometry, tokens, None)), pixels)
    for quantile in (None, 0.9):
        counts = frozen_counts([one.counts for one in seen], tokens, quantile)
        first = [float(one[0]) for one, *_ in by_hand]
        wanted = sum(first) / 10 if quantile is None else float(torch.tensor(first).quantile(0.9))
        assert counts["vision.layers.1"] == pytest.approx(wanted, abs=0.51)
        static = rewrite(graphs, settled.stages(graphs.geometry, tokens, Frozen(counts=counts)))
        kept = [record.keep for record in static.schedule]
        assert kept == sorted(kept, reverse=True) and kept[-1] == tokens
        assert kept[0] == counts["vision.layers.1"]


def test_what_is_left_open(graphs: TokenGraphs) -> None:
    geometry = graphs.geometry
    assert ASViT(form="threshold").dynamic() is None and ASViT().dynamic() is not None
    assert ASViT(scale=2.0).decides(geometry, 8) is None and ASViT().decides(geometry, TOTAL) is None
    decision = ASViT(accumulate=True).decides(geometry, 8)
    assert decision is not None and decision.counting([Look()]) == ASViT(form="threshold", accumulate=True, scale=1.0)


def test_counts_without_samples_fall_by_one_ratio(graphs: TokenGraphs) -> None:
    assert told(ASViT().stages(graphs.geometry, 8, None)) == [(1, "choose", 32), (2, "choose", 16), (3, "choose", 8)]
    assert told(ASViT().stages(graphs.geometry, 63, None)) == [(2, "choose", 63)]
    assert ASViT().stages(graphs.geometry, TOTAL, None) == ()


@pytest.mark.parametrize(
    ("counts", "plan"),
    [
        ({1: 40, 2: 20}, [(1, 40), (2, 20), (3, 8)]),
        ({2: 20}, [(2, 20), (3, 8)]),
        ({1: 20, 2: 30}, [(1, 20), (3, 8)]),  # never rises
        ({1: 4}, [(1, 8)]),  # nothing is left to cut
        ({1: 40, 2: 20, 3: 30}, [(1, 40), (2, 20), (3, 8)]),  # the last is what was asked for
        ({}, [(3, 8)]),
    ],
)
def test_frozen_counts(graphs: TokenGraphs, counts: dict[int, int], plan: list[tuple[int, int]]) -> None:
    frozen = Frozen(counts={f"vision.layers.{layer}": count for layer, count in counts.items()})
    stages = ASViT().stages(graphs.geometry, 8, frozen)
    assert told(stages) == [(layer, "choose", keep) for layer, keep in plan]


def test_the_sum_is_handed_on_between_cuts() -> None:
    geometry = families.geometry(config(vision_layers=13))  # twelve are used
    stages = ASViT(accumulate=True).stages(geometry, 8, None)
    cuts = {3: 32, 6: 16, 9: 8}
    assert told(stages) == [
        (layer, "choose" if layer in cuts else "observe", min([TOTAL, *(k for c, k in cuts.items() if c <= layer)]))
        for layer in range(2, 10)
    ]
    assert [stage.carries for stage in stages] == [("score",)] * 7 + [()]
    early = ASViT(accumulate=True, layers=(0, 2, 5)).stages(geometry, 8, None)
    assert [layer for layer, *_ in told(early)] == [0, 1, 2, 3, 4, 5]


def test_scores_are_summed(graphs: TokenGraphs) -> None:
    """By single scores of the same, unpruned layers; the last is that of the layer behind which is cut."""
    stages = ASViT(accumulate=True, layers=(3,), thresholds=(0.1,)).stages(graphs.geometry, 8, None)
    watcher = Watcher(rewrite(graphs, stages).graphs.vision)
    with torch.no_grad():
        watcher.run(pictures(2))
    total = torch.zeros(2, TOTAL)
    for layer in range(4):
        taps = (watcher.seen[f"select_{name}_l{layer}"] for name in ("cls_attention", "head_norms"))
        total = total + weighted(*taps)
        torch.testing.assert_close(watcher.seen[f"select_rule_l{layer}"]["score"], total, atol=1e-6, rtol=0)


def test_equal_scores_keep_the_lower_index(graphs: TokenGraphs) -> None:
    with torch.no_grad():
        _, kept = rewrite(graphs, ASViT().stages(graphs.geometry, 8, None)).graphs.vision(torch.zeros(1, 3, 112, 112))
    stage = ASViT().stages(graphs.geometry, 8, None)[0]
    outcome = stage.rule({"cls_attention": torch.full((1, 4, 65), 1 / 65), "head_norms": torch.ones(1, 4, 65)}, {})
    assert outcome["score"].unique().numel() == 1 and len(set(kept["vision.layers.3"][0].tolist())) == 8


def test_a_token_must_exceed_its_threshold(graphs: TokenGraphs) -> None:
    method = ASViT(form="threshold", thresholds=(0.25, 0.25, 0.25), scale=64 / 196)
    first, _, last = method.stages(graphs.geometry, 1, None)
    attention = torch.zeros(1, 1, 65)
    attention[0, 0, [5, 6, 7]] = torch.tensor([0.25, 0.375, 0.3125])
    signals = {"cls_attention": attention, "head_norms": torch.ones(1, 1, 65)}
    assert first.rule(signals, {})["count"].tolist() == [2] and last.rule(signals, {})["passing"].tolist() == [2]
    # the dead do not pass, whatever they had before
    alive = torch.arange(64)[None] != 5
    assert last.rule({**signals, "alive": alive}, {})["passing"].tolist() == [1]
    # and fewer than were asked for are never left
    assert method.stages(graphs.geometry, 4, None)[0].rule(signals, {})["count"].tolist() == [4]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"layers": (1, 2)}, "has 3 thresholds and cuts behind 2 layers"),
        ({"thresholds": (0.1,)}, "has 1 thresholds and cuts behind 3 layers"),
        ({"layers": (1, 2, 9)}, "uses 5 layers, so tokens can be dropped behind layers 0..4"),
        ({"layers": (3, 2, 4)}, "each must lie behind the one before"),
        ({"layers": ()}, "names no layer"),
    ],
)
@pytest.mark.parametrize("tokens", [8, TOTAL])
def test_what_cannot_be(graphs: TokenGraphs, params: dict[str, Any], message: str, tokens: int) -> None:
    with pytest.raises(MethodError, match=message):
        ASViT(**params).stages(graphs.geometry, tokens, None)


def test_towers_that_it_does_not_serve() -> None:
    siglip = families.geometry(config("llama", "siglip"))
    with pytest.raises(MethodError, match=r"AS-ViT reads the \[CLS\] row, and this siglip tower has no \[CLS\] token"):
        planned(ASViT(), siglip, 8, None, "renumbered")
    short = families.geometry(config(vision_layers=3))
    with pytest.raises(MethodError, match="uses 2 layers"):
        ASViT().stages(short, 8, None)
    assert len(ASViT(layers=(1,), thresholds=(0.01,)).stages(short, 8, None)) == 1


def test_thresholds_count_as_for_196_tokens(graphs: TokenGraphs) -> None:
    share = torch.cat([torch.zeros(1), torch.full((64,), 1 / 64)]).view(1, 1, 65)
    signals = {"cls_attention": share, "head_norms": torch.ones(1, 1, 65)}
    for limit, count in ((0.99 / 196, 64), (1.01 / 196, 1)):
        method = ASViT(form="threshold", layers=(1, 3), thresholds=(limit, limit))
        assert method.stages(graphs.geometry, 1, None)[0].rule(signals, {})["count"].tolist() == [count]
