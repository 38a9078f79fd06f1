"""CDPruner against what its authors' code selected: their relevance goes in, which LLaVA checkpoints cannot compute."""

import pytest
import torch
from goldens_support import IMAGES, Recorded, carved, check_answers, golden_graphs, golden_inputs
from torch import Tensor
from watcher import Watcher

from tokcarve.passes.choose import take, top_in_order, unit
from tokcarve.passes.graph import drop_prefix
from tokcarve.passes.greedy import volume
from tokcarve.passes.methods.cdpruner import CDPruner, keeping, relevance

WHOLE, WIDE = ("48", "48_M2", "32"), ("192_wide", "128_wide", "64_wide")


@pytest.fixture(scope="module")
def golden() -> Recorded:
    return Recorded("cdpruner")


@pytest.fixture(scope="module")
def features(golden: Recorded) -> dict[str, Tensor]:
    """Projected tokens of the unpruned model, and the wider ones of the recorded projector."""
    watcher = Watcher(golden_graphs().vision)
    with torch.no_grad():
        plain, _ = watcher.run(golden_inputs()[0])
    weight, bias = (torch.from_numpy(golden.arrays[f"all/wide_{name}"]) for name in ("weight", "bias"))
    patches = watcher.seen[str(drop_prefix)]
    return {"plain": plain, "wide": torch.nn.functional.gelu(patches @ weight.T + bias)}


def relevant(golden: Recorded, budget: str) -> Tensor:
    """The mean over text segments, negated: patches of CLIP are the less alike to a text the more it speaks of them."""
    return relevance(-golden.stack(budget, "cos_image_text").mean(dim=2))


def select(golden: Recorded, features: dict[str, Tensor], budget: str) -> tuple[Tensor, Tensor, Tensor]:
    """Order, gains and the kept ids, ascending."""
    weight, count = relevant(golden, budget), int(budget.split("_")[0])
    tokens = features["wide" if budget in WIDE else "plain"]
    picked, fresh = volume(unit(tokens), weight, count)
    return picked, take(weight, picked) ** 2 * fresh, top_in_order(keeping(weight, picked, fresh), count)


def same_order(picked: Tensor, recorded: Tensor, gains: Tensor) -> bool:
    """Whether two orders [images, count] are equal, but for neighbours whose recorded gains differ by less than one in
    a thousand: processors that round otherwise take those the other way round."""
    turned = picked.clone()
    near = (gains[:, :-1] - gains[:, 1:]).abs() < 1e-3 * gains[:, 1:].abs()
    for image, step in ((picked != recorded)[:, :-1] & near).nonzero().tolist():
        pair = [step, step + 1]
        if picked[image, pair].tolist() == recorded[image, pair].flip(0).tolist():
            turned[image, pair] = recorded[image, pair]
    return torch.equal(turned, recorded)


def test_only_near_ties_may_change_places() -> None:
    gains = torch.tensor([[4.0, 3.0, 2.0, 1.9999]])
    recorded = torch.tensor([[7, 8, 9, 10]])
    assert same_order(recorded, recorded, gains) and same_order(torch.tensor([[7, 8, 10, 9]]), recorded, gains)
    for other in ([8, 7, 9, 10], [7, 9, 8, 10], [7, 8, 10, 11], [7, 8, 9, 11]):
        assert not same_order(torch.tensor([other]), recorded, gains), other


@pytest.mark.parametrize("budget", [*WHOLE, *WIDE])
def test_it_picks_what_its_authors_code_picks(golden: Recorded, features: dict[str, Tensor], budget: str) -> None:
    assert all(golden.trusted(i, budget) for i in IMAGES)
    torch.testing.assert_close(relevant(golden, budget), golden.stack(budget, "relevance"), atol=1e-6, rtol=1e-5)
    picked, gains, kept = select(golden, features, budget)
    assert same_order(picked, golden.stack(budget, "selection_order").long(), golden.stack(budget, "gains"))
    torch.testing.assert_close(gains.double(), golden.stack(budget, "gains"), atol=2e-6, rtol=1e-4)
    assert torch.equal(kept, golden.stack(budget, "kept").long())


@pytest.mark.parametrize("budget", WHOLE)
def test_it_answers_what_its_authors_code_answers(golden: Recorded, features: dict[str, Tensor], budget: str) -> None:
    check_answers(take(features["plain"], select(golden, features, budget)[2]), golden, budget)


def test_the_comparison_has_power(golden: Recorded, features: dict[str, Tensor]) -> None:
    """The other sign, the other text, no relevance, and relevance without diversity: each gives something else."""
    recorded = golden.stack("48", "kept").long()
    assert not torch.equal(recorded, golden.stack("48_M2", "kept").long())
    cosine, units = golden.stack("48", "cos_image_text").mean(dim=2), unit(features["plain"])
    weight = relevant(golden, "48")
    others = [
        volume(units, relevance(cosine), 48)[0],
        volume(units, torch.ones_like(weight), 48)[0],
        volume(units, relevance(-cosine, theta=0.5), 48)[0],
        top_in_order(weight, 48),
    ]
    for other in others:
        assert all(set(other[i].tolist()) != set(recorded[i].tolist()) for i in IMAGES)


def test_more_tokens_than_the_features_have_dimensions(golden: Recorded, features: dict[str, Tensor]) -> None:
    """64 numbers per token: the reference divides by roots of negative rounding here and gives too few tokens."""
    weight = relevant(golden, "48")
    picked, fresh = volume(unit(features["plain"]), weight, 192)
    kept = top_in_order(keeping(weight, picked, fresh), 192)
    assert fresh.isfinite().all() and (kept[:, 1:] > kept[:, :-1]).all()
    real = fresh > 3e-4
    assert ((real.sum(dim=1) > 50) & (real.sum(dim=1) <= 64)).all()
    for i in IMAGES:
        spanning = set(picked[i][real[i]].tolist())
        rest = [j for j in weight[i].argsort(descending=True).tolist() if j not in spanning]
        assert set(kept[i].tolist()) == spanning | set(rest[: 192 - len(spanning)])


def test_the_whole_graph_on_the_recorded_inputs() -> None:
    pixels, ids = golden_inputs()
    with torch.no_grad():
        features, kept, _ = carved(CDPruner(), 128).graphs.see(pixels, ids, torch.full((4,), ids.shape[1]))
    assert features.shape == (4, 128, 64) and features.isfinite().all()
    assert (kept["connector"][:, 1:] > kept["connector"][:, :-1]).all()
