"""Turbo: ToMe without attention, the fixture of the specification, what [CLS] protects, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from models import TOTAL, build, pictures
from torch import Tensor
from twelve import SEEN, TWELVE
from watcher import Watcher

from tokcarve.passes import choose, families
from tokcarve.passes.bipartite import alike, merge_pairs
from tokcarve.passes.errors import MethodError
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.insert import rewrite
from tokcarve.passes.invariants import check_carved
from tokcarve.passes.methods.tome import ToMe
from tokcarve.passes.methods.turbo import Turbo
from tokcarve.passes.stage import Method
from tokcarve.recipes.carve import planned

PLAN = [10, 10, 10, 9, 9]  # 64 patches to 16 in five layers


@pytest.fixture(scope="module")
def graphs() -> TokenGraphs:
    return families.capture(build())


@torch.no_grad()
def watched(graphs: TokenGraphs, method: Method, tokens: int = 16) -> tuple[Tensor, dict[str, Tensor], Watcher]:
    result = rewrite(graphs, method.stages(graphs.geometry, tokens, None))
    check_carved(result.graphs, result.schedule)
    watcher = Watcher(result.graphs.vision)
    features, kept = watcher.run(pictures(3))
    return features, kept, watcher


@pytest.mark.parametrize(
    ("alpha", "scale", "sources", "column"),
    [
        (0.0, 30.0, [2, 8, 10], [-0.265685, -0.799947, 1.052726, 0.117208, -0.576595, -0.521887, 0.514326, 0.866234]),
        (5.0, 30.0, [2, 6, 10], [-0.265685, -0.283094, 1.052726, 0.117208, -0.576595, -0.76068, -0.142811, 0.866234]),
        (0.5, 2.0, [2, 8, 10], [-0.265685, -0.799947, 1.052726, 0.117208, -0.576595, -0.521887, 0.514326, 0.866234]),
    ],
)
def test_the_fixture_of_the_specification(alpha: float, scale: float, sources: list[int], column: list[float]) -> None:
    keys, attention = TWELVE.unsqueeze(1), SEEN.unsqueeze(1)  # row 0 is [CLS]
    worth = Turbo(alpha=alpha, scale=scale).worth({"cls_attention": attention.expand(-1, 4, -1)})
    torch.testing.assert_close(worth, alpha * scale * attention[:, 0, [2, 4, 6, 8, 10]], atol=1e-6, rtol=0)
    made = merge_pairs(alike(keys, 1), worth, {}, 3, 1)
    assert (made["sources"][0] + 1).tolist() == sources
    ids, index, own = (made[name] for name in ("sources", "index", "own"))
    rows = choose.merge(keys[:, 0], made["weights"], 1, sources=ids, index=index, own=own)
    torch.testing.assert_close(rows[0, 1:, 0], torch.tensor(column), atol=2e-6, rtol=0)


@pytest.mark.parametrize("proportional", [True, False])
def test_without_attention_it_is_tome(graphs: TokenGraphs, proportional: bool) -> None:
    plain, ids, _ = watched(graphs, ToMe(proportional=proportional))
    for method in (Turbo(alpha=0.0, proportional=proportional), Turbo(scale=0.0, proportional=proportional)):
        features, kept, _ = watched(graphs, method)
        assert torch.equal(features, plain)
        assert all(torch.equal(kept[site], ids[site]) for site in ids)
    weighed, _, _ = watched(graphs, Turbo(proportional=proportional))
    assert (weighed - plain).abs().max() > 1e-2


def test_only_the_product_of_alpha_and_scale_counts(graphs: TokenGraphs) -> None:
    one, other = (watched(graphs, Turbo(alpha=alpha, scale=scale))[0] for alpha, scale in ((4.0, 32.0), (2.0, 64.0)))
    assert torch.equal(one, other)
    assert not torch.equal(one, watched(graphs, Turbo(alpha=4.0, scale=0.5))[0])


def test_what_cls_attends_to_most_stays(graphs: TokenGraphs) -> None:
    """Under a large alpha, exactly the second patches with the least attention go, in every layer."""
    method = replace(Turbo(alpha=1e6), order="published")
    _, _, watcher = watched(graphs, method)
    _, _, plain = watched(graphs, Turbo(alpha=0.0, order="published"))
    for layer, remove in enumerate(PLAN):
        seen = watcher.seen[f"select_cls_attention_l{layer}_attention"].mean(dim=1)[:, 1:]
        sources = watcher.seen[f"select_rule_l{layer}_attention"]["sources"]
        second = seen[:, 1::2]
        assert (sources % 2 == 1).all() and second.shape[1] > remove
        least = second.argsort(dim=1)[:, :remove].sort(dim=1).values * 2 + 1
        assert torch.equal(sources, least)
        assert not (sources == second.argmax(dim=1, keepdim=True) * 2 + 1).any()
    first = "select_rule_l0_attention"
    assert not torch.equal(plain.seen[first]["sources"], watcher.seen[first]["sources"])


def test_a_patch_goes_where_it_would_go_without_attention(graphs: TokenGraphs) -> None:
    """Worth changes who goes, not whereto."""
    similar = torch.rand(2, 9, 9, generator=torch.Generator().manual_seed(0))
    worth = torch.rand(2, 9, generator=torch.Generator().manual_seed(1))
    for remove in (3, 6):
        made = merge_pairs(similar, worth, {}, remove, 1)
        sinks = made["index"].gather(1, made["weights"].argmax(dim=1))
        best = similar.argmax(dim=2) * 2
        assert torch.equal(sinks, best.gather(1, (made["sources"] - 1) // 2))


def test_raster_order_is_the_published_one_sorted(graphs: TokenGraphs) -> None:
    features, kept, _ = watched(graphs, Turbo())
    plain, ids, _ = watched(graphs, Turbo(order="published"))
    last = "vision.layers.4.attention"
    rising = ids[last].argsort(dim=1)
    assert torch.equal(kept[last], ids[last].gather(1, rising)) and not torch.equal(kept[last], ids[last])
    expected = plain.gather(1, rising.unsqueeze(2).expand_as(plain))
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)


def test_a_tower_without_cls_is_refused() -> None:
    geometry = families.capture(build("llama", "siglip")).geometry
    with pytest.raises(
        MethodError, match=r"Turbo reads the \[CLS\] row, .* siglip tower .* work here are (.*)"
    ) as found:
        planned(Turbo(), geometry, 16, None, "renumbered")
    served = str(found.value).split("work here are ")[1].split(", ")
    assert {"tome", "uniform", "pooling"} <= set(served) and not {"turbo", "vtc_cls"} & set(served)


def test_less_than_halving_reaches_is_refused(graphs: TokenGraphs) -> None:
    with pytest.raises(
        MethodError, match="Turbo .* 5 vision layers .* leaves 2 of 64; 1 were asked for: keep 2 or more"
    ):
        Turbo().stages(graphs.geometry, 1, None)
    assert Turbo().stages(graphs.geometry, TOTAL, None) == ()
    features, _, watcher = watched(graphs, Turbo(), 2)
    assert features.shape == (3, 2, 48)
    assert watcher.seen["select_rule_l4_attention"]["size"].sum(dim=1).tolist() == [TOTAL] * 3
