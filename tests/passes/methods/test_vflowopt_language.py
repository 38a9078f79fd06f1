"""VFlowOpt in the language model: its counts, and that the importance of the patches decides there as at first."""

from collections.abc import Sequence

import pytest
import torch
from goldens_support import golden_graphs
from greedy import answer
from models import TOTAL, Tower, build, config, pictures, prompt
from watcher import Watcher

from tokcarve.passes import families
from tokcarve.passes.errors import MethodError
from tokcarve.passes.graph import Seen, all_kept
from tokcarve.passes.insert import rewrite
from tokcarve.passes.methods.vflowopt import VFlowOpt

# published: mean share of the tokens over all layers, its threshold, cell, shares of the three cuts
PUBLISHED = {
    0.5: (28.683, 11.757, (0.72332, 0.74875, 0.487)),
    0.25: (34.760, 15.581, (0.26510, 0.98334, 0.87733)),
    0.1: (39.265, 17.387, (0.11662, 1.0, 0.6011)),
}


@pytest.mark.parametrize("mean", PUBLISHED)
def test_the_published_shares_give_the_published_mean(mean: float) -> None:
    _, cell, (first, *later) = PUBLISHED[mean]
    geometry = families.geometry(config(text_layers=28))
    total = 729
    counts = VFlowOpt(cell=cell, ratios=tuple(later)).counts(
        total, round(total * first * later[0] * later[1]), ("", "")
    )
    assert counts[0] == pytest.approx(total * first, abs=1)
    parts = sum(count * layers for count, layers in zip(counts, (9, 9, 10), strict=True))
    assert parts / 28 / total == pytest.approx(mean, abs=2e-3)
    stages = VFlowOpt(cell=cell, ratios=tuple(later)).stages(geometry, 32, None)
    assert {stage.site for stage in stages[2:]} <= {"language.layers.8", "language.layers.17"}


@pytest.mark.parametrize(("layers", "sites"), [(28, [8, 17]), (32, [9, 19]), (8, [1, 4]), (6, [1, 3]), (3, [0, 1])])
def test_cuts_lie_at_the_published_share_of_the_depth(layers: int, sites: list[int]) -> None:
    stages = VFlowOpt(ratios=(0.8, 0.5)).stages(families.geometry(config(text_layers=layers)), 16, None)
    assert [stage.site for stage in stages[2:]] == [f"language.layers.{layer}" for layer in sites]
    assert [(stage.how, stage.positions) for stage in stages[2:]] == [("choose", "original")] * 2


def test_a_cut_that_would_leave_no_fewer_falls_away() -> None:
    geometry = golden_graphs().geometry
    method = VFlowOpt(ratios=(0.9, 0.5))
    plan = {tokens: method.stages(geometry, tokens, None) for tokens in range(2, 576)}
    assert [(s.site, s.keep) for s in plan[64][1:]] == [
        ("connector", 142),
        ("language.layers.9", 128),
        ("language.layers.19", 64),
    ]
    assert [(s.site, s.keep) for s in plan[300][1:]] == [("language.layers.19", 300)]
    assert [(s.site, s.keep) for s in plan[270][1:]] == [("language.layers.9", 540), ("language.layers.19", 270)]
    for tokens, (watching, *stages) in plan.items():
        counts = [576, *(stage.keep for stage in stages)]
        assert watching.how == "observe" and counts[-1] == tokens
        assert all(after < before for before, after in zip(counts, counts[1:], strict=False))


def best(scores: Sequence[float], among: Sequence[int], keep: int) -> list[int]:
    """The `keep` of `among` with the highest scores, equal ones by index, in their order."""
    return sorted(sorted(among, key=lambda i: (-scores[i], i))[:keep])


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("tokens", [10, 40])
def test_importance_decides_in_the_language_model_too(tower: Tower, tokens: int) -> None:
    """At 40 tokens all enter the language model, and only the tower's map is handed on."""
    graphs = families.capture(build("llama", tower, text_layers=8))
    method = VFlowOpt(threshold=1.2, cell=4.0, ratios=(0.7, 0.6))
    result = rewrite(graphs, method.stages(graphs.geometry, tokens, None))
    watcher, last = Watcher(result.graphs.vision), graphs.geometry.vision.layers_used - 1
    with torch.no_grad():
        seen = Seen(*watcher.run(pictures(3)))
        counts = [stage.keep for stage in result.schedule]
        ids, lengths = prompt([6, 9, 12], visual=seen.features.shape[1])
        read, _ = result.graphs.read(ids, seen, lengths)
    kept = all_kept(seen, read)
    assert counts == ([24, 17, 10] if tokens == 10 else [40])
    for image, scores in enumerate(watcher.seen[f"select_rule_l{last}"]["importance"].tolist()):
        left = kept["connector"][image].tolist() if tokens == 10 else list(range(TOTAL))
        # what was recycled into a token does not make it more important
        assert seen.handed["importance"][image].tolist() == [scores[i] for i in left]
        for site, count in [(s.site, s.keep) for s in result.schedule if s.site.startswith("language.")]:
            left = best(scores, left, count)
            assert kept[site][image].tolist() == left
    logits, said = answer(result.graphs, seen, ids, lengths, 3)
    assert logits.isfinite().all() and said.shape == (3, 3)


def test_another_number_of_ratios_than_of_layers_is_refused() -> None:
    geometry = golden_graphs().geometry
    with pytest.raises(MethodError, match="ratios of vflowopt are 2, .* drops behind 1; give as many of both"):
        VFlowOpt(layers=(9,)).stages(geometry, 64, None)
    assert len(VFlowOpt(layers=(9,), ratios=(0.5,)).stages(geometry, 64, None)) == 3
    assert len(VFlowOpt(layers=(9,), scope="first").stages(geometry, 64, None)) == 2
    with pytest.raises(MethodError, match="behind layer 31"):
        VFlowOpt(layers=(9, 31)).stages(geometry, 64, None)
