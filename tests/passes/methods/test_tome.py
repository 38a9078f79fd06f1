"""ToMe: what its authors' code merges and answers, a tower without [CLS] against a plain loop, and what it refuses."""

import itertools
from typing import Any

import pytest
import torch
from goldens_support import IMAGES, Recorded, carved, check_answers, golden_inputs
from models import TOTAL, Tower, build, pictures
from torch import Tensor
from watcher import Watcher

from tokcarve.passes import families
from tokcarve.passes.blocks import VisionBlock
from tokcarve.passes.errors import MethodError
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.insert import rewrite
from tokcarve.passes.invariants import check_carved
from tokcarve.passes.methods.tome import ToMe

BUDGETS = [(tokens, proportional) for tokens in (192, 128, 64, 32) for proportional in (True, False)]
LAST = "vision.layers.22.attention"


@pytest.fixture(scope="module")
def golden() -> Recorded:
    return Recorded("tome_clip")


def budget(tokens: int, proportional: bool) -> str:
    return f"{tokens}_{'prop' if proportional else 'noprop'}"


@torch.no_grad()
def watched(method: ToMe, tokens: int) -> tuple[Tensor, dict[str, Tensor], list[dict[str, Tensor]]]:
    """Features, kept ids and the outcome of every rule on the golden images."""
    watcher = Watcher(carved(method, tokens).graphs.vision)
    features, kept = watcher.run(golden_inputs()[0])
    return features, kept, [value for name, value in watcher.seen.items() if name.startswith("select_rule_")]


def groups(outcomes: list[dict[str, Tensor]], total: int) -> Tensor:
    """The row of the result that holds each patch: int64 [batch, total]."""
    batch = outcomes[0]["index"].shape[0]
    at = torch.arange(total).expand(batch, -1)
    for made in outcomes:
        moved = torch.full_like(at, -1)
        rows = torch.arange(made["index"].shape[1]).expand(batch, -1)
        moved.scatter_(1, made["index"], rows)
        moved.scatter_(1, made["sources"], made["weights"].argmax(dim=1))
        at = torch.gather(moved, 1, at)
    return at


@pytest.mark.parametrize(("tokens", "proportional"), BUDGETS)
def test_it_merges_what_its_authors_code_merges(golden: Recorded, tokens: int, proportional: bool) -> None:
    entry = budget(tokens, proportional)
    assert all(golden.trusted(i, entry) for i in IMAGES), "float64 merges the same"
    features, kept, outcomes = watched(ToMe(proportional=proportional, order="published"), tokens)
    removed = [before - after for before, after in itertools.pairwise([576, *(o["size"].shape[1] for o in outcomes)])]
    assert removed == golden.get(0, entry, "schedule").tolist()
    assert torch.equal(groups(outcomes, 576), golden.stack(entry, "group_of_patch").long())
    assert torch.equal(outcomes[-1]["size"], golden.stack(entry, "sizes").float())
    assert torch.equal(kept[LAST], outcomes[-1]["origin"])
    check_answers(features, golden, entry)


@pytest.mark.parametrize(("tokens", "proportional"), BUDGETS)
def test_raster_order_is_the_same_rows_sorted(golden: Recorded, tokens: int, proportional: bool) -> None:
    entry = budget(tokens, proportional)
    sorted_, ids, outcomes = watched(ToMe(proportional=proportional), tokens)
    _, published, _ = watched(ToMe(proportional=proportional, order="published"), tokens)
    assert torch.equal(ids[LAST], published[LAST].sort(dim=1).values)
    rising = published[LAST].argsort(dim=1)
    expected = torch.gather(golden.stack(entry, "feat"), 1, rising.unsqueeze(2).expand_as(sorted_))
    torch.testing.assert_close(sorted_, expected, atol=5e-4, rtol=0)
    assert torch.equal(outcomes[-1]["size"], golden.stack(entry, "sizes").gather(1, rising).float())
    assert torch.equal(groups(outcomes, 576).gather(1, ids[LAST]), torch.arange(tokens).expand(4, -1)), (
        "a row of its own"
    )
    assert not torch.equal(rising, torch.arange(tokens).expand(4, -1)), "the published order is another"


def farthest(rows: Tensor, others: Tensor) -> float:
    """The largest difference between a row and what is nearest to it among `others`."""
    return float((rows.unsqueeze(1) - others.unsqueeze(0)).abs().amax(dim=2).amin(dim=1).max())


def test_the_comparison_has_power(golden: Recorded) -> None:
    """Another setting, a neighbouring budget and no merging at all give something else."""
    plain, sized = golden.stack("128_noprop", "feat"), golden.stack("128_prop", "feat")
    features, _, outcomes = watched(ToMe(proportional=False), 128)
    more, _, _ = watched(ToMe(), 129)
    assert not torch.equal(groups(outcomes, 576), golden.stack("128_prop", "group_of_patch").long())
    for i in IMAGES:
        assert farthest(features[i], plain[i]) < 5e-4
        assert farthest(features[i], sized[i]) > 0.05
        assert farthest(sized[i], more[i]) > 0.05


def attended(block: Any, hidden: Tensor, heads: int, size: Tensor | None) -> tuple[Tensor, Tensor]:
    """The first half of a layer, and its keys; every key counts `size` times."""
    rows = block.layer_norm1(hidden)
    attention = block.self_attn
    query, key, value = (
        project(rows).unflatten(2, (heads, -1)).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    shares = torch.exp(query @ key.transpose(2, 3) * query.shape[3] ** -0.5)
    shares = shares if size is None else shares * size[:, None, None]
    mixed = (shares / shares.sum(dim=3, keepdim=True)) @ value
    return hidden + attention.out_proj(mixed.transpose(1, 2).flatten(2)), key.mean(dim=1)


def reduced(rows: Tensor, keys: Tensor, size: Tensor, remove: int, prefix: int) -> tuple[Tensor, Tensor]:
    """One image [n, hidden] after `remove` merges, and sizes; [CLS] counts among the rows."""
    unit = [key / key.norm() for key in keys]
    going = [i for i in range(0, len(unit), 2) if i >= prefix]
    taking = list(range(1, len(unit), 2))
    alike = {i: [float(unit[i] @ unit[j]) for j in taking] for i in going}
    gone = sorted(going, key=lambda i: -max(alike[i]))[:remove]
    total, count = rows * size[:, None], size.clone()
    for i in gone:
        into = taking[alike[i].index(max(alike[i]))]
        total[into], count[into] = total[into] + rows[i] * size[i], count[into] + size[i]
    left = [*(i for i in range(0, len(unit), 2) if i not in gone), *taking]
    return total[left] / count[left, None], count[left]


@torch.no_grad()
def looped(graphs: TokenGraphs, pixels: Tensor, plan: list[int], proportional: bool) -> Tensor:
    """ToMe on the checkpoint's own layers, token by token; published order."""
    prefix, heads = graphs.geometry.vision.prefix, graphs.geometry.vision.heads
    hidden = graphs.parts.patches(pixels)
    size = torch.ones(hidden.shape[:2])
    for part, remove in zip(graphs.parts.vision_blocks, plan, strict=True):
        assert isinstance(part, VisionBlock)
        block: Any = part.layer
        hidden, keys = attended(block, hidden, heads, size if proportional else None)
        images = [reduced(*image, remove, prefix) for image in zip(hidden, keys, size, strict=True)]
        hidden, size = (torch.stack(each) for each in zip(*images, strict=True))
        hidden = hidden + block.mlp(block.layer_norm2(hidden))
    features: Tensor = graphs.parts.connector(hidden[:, prefix:])
    return features


@pytest.mark.parametrize("tower", ["clip", "siglip"])
@pytest.mark.parametrize("proportional", [True, False])
def test_a_tower_is_merged_as_a_plain_loop_merges_it(tower: Tower, proportional: bool) -> None:
    graphs = families.capture(build("llama", tower))
    plan = [10, 10, 10, 9, 9] if tower == "clip" else [8] * 6
    stages = ToMe(proportional=proportional, order="published").stages(graphs.geometry, TOTAL - sum(plan), None)
    result = rewrite(graphs, stages)
    check_carved(result.graphs, result.schedule)
    with torch.no_grad():
        features, _ = result.graphs.vision(pictures(3))
    expected = looped(graphs, pictures(3), plan, proportional)
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=0)
    other = looped(graphs, pictures(3), plan, not proportional)
    assert (features - other).abs().max() > 1e-2


@pytest.mark.parametrize(("tower", "bound"), [("clip", 2), ("siglip", 1)])
def test_less_than_halving_reaches_is_refused(tower: Tower, bound: int) -> None:
    graphs = families.capture(build("llama", tower))
    result = rewrite(graphs, ToMe().stages(graphs.geometry, bound, None))
    check_carved(result.graphs, result.schedule)
    watcher = Watcher(result.graphs.vision)
    with torch.no_grad():
        features, _ = watcher.run(pictures(2))
    last = f"select_rule_l{graphs.geometry.vision.layers_used - 1}_attention"
    assert features.shape == (2, bound, 48) and watcher.seen[last]["size"].sum(dim=1).tolist() == [TOTAL, TOTAL]
    if bound > 1:
        with pytest.raises(MethodError, match="ToMe .* 5 vision layers .* leaves 2 of 64; 1 were asked for: keep 2 or"):
            ToMe().stages(graphs.geometry, 1, None)


def test_keeping_all_plans_nothing() -> None:
    assert ToMe().stages(families.capture(build()).geometry, TOTAL, None) == ()
