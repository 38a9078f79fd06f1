"""FlowCut and VTC-CLS against what their authors' code selected, on every recorded image and budget."""

import pytest
import torch
from goldens_support import IMAGES, Recorded, carved, check_answers, golden_graphs, golden_inputs
from greedy import answer
from torch import Tensor
from watcher import Watcher

from tokcarve.passes import choose
from tokcarve.passes.calibrate import observe
from tokcarve.passes.methods.flowcut import FlowCut
from tokcarve.passes.methods.vtc_cls import VtcCls

FLOWCUT_BUDGETS = (192, 128, 64, 32)
VTC_BUDGETS = [(tokens, start) for start in (20, 16) for tokens in (256, 192, 128, 64, 32)]


@pytest.fixture(scope="module")
def flowcut() -> Recorded:
    return Recorded("flowcut")


@pytest.fixture(scope="module")
def vtc_cls() -> Recorded:
    return Recorded("vtc_cls")


@pytest.mark.parametrize("tokens", FLOWCUT_BUDGETS)
def test_flowcut_keeps_what_its_authors_code_keeps(flowcut: Recorded, tokens: int) -> None:
    assert all(flowcut.trusted(i, str(tokens)) for i in IMAGES), "the recorded cuts have no near ties"
    result = carved(FlowCut(form="exact"), tokens)
    pixels, _ = golden_inputs()
    with torch.no_grad():
        features, kept = result.graphs.vision(pixels)
    assert torch.equal(kept["vision.layers.21"], flowcut.stack(str(tokens), "kept").long())
    check_answers(features, flowcut, str(tokens))


@pytest.mark.parametrize("tokens", FLOWCUT_BUDGETS)
def test_flowcut_goes_the_same_way_layer_by_layer(flowcut: Recorded, tokens: int) -> None:
    watcher = Watcher(carved(FlowCut(form="exact"), tokens).graphs.vision)
    with torch.no_grad():
        watcher.run(golden_inputs()[0])
    before = torch.ones(len(IMAGES), 576, dtype=torch.bool)
    for layer in range(1, 22, 2):
        ema = watcher.seen[f"select_rule_l{layer}"]["ema"]
        after = watcher.seen.get(f"select_alive_l{layer}")
        for i in IMAGES:
            expected = torch.from_numpy(flowcut.get(i, str(tokens), f"ema_l{layer:02d}"))
            torch.testing.assert_close(ema[i][before[i]], expected, atol=1e-6, rtol=1e-4)
            if after is not None:
                survivors = after[i].nonzero().flatten()
                recorded = flowcut.get(i, str(tokens), f"kept_l{layer:02d}")
                assert survivors.tolist() == recorded.tolist(), (i, layer)
        before = after if after is not None else before


@pytest.mark.parametrize("tokens", FLOWCUT_BUDGETS)
def test_calibration_observes_the_recorded_counts(flowcut: Recorded, tokens: int) -> None:
    seen = observe(carved(FlowCut(form="exact"), tokens), golden_inputs()[0])
    for i, image in enumerate(seen):
        counts = flowcut.get(i, str(tokens), "layer_counts")
        assert image.counts == {f"vision.layers.{layer}": int(counts[layer]) for layer in range(1, 20, 2)}
        assert image.kept == set(flowcut.get(i, str(tokens), "kept").tolist())


@pytest.mark.parametrize(("tokens", "start"), VTC_BUDGETS)
def test_vtc_cls_keeps_what_its_authors_code_keeps(vtc_cls: Recorded, tokens: int, start: int) -> None:
    budget = f"{tokens}_s{start}"
    assert all(vtc_cls.trusted(i, budget) for i in IMAGES), "the recorded cuts have no near ties"
    watcher = Watcher(carved(VtcCls(layers=23 - start), tokens).graphs.vision)
    pixels, _ = golden_inputs()
    with torch.no_grad():
        features, kept = watcher.run(pixels)
    assert torch.equal(kept["vision.layers.22"], vtc_cls.stack(budget, "kept").long())
    score = watcher.seen["select_rule_l22"]["score"]
    torch.testing.assert_close(score, vtc_cls.stack(budget, "score"), atol=1e-6, rtol=1e-4)
    check_order(score, vtc_cls.stack(budget, "topk_order").long())
    check_answers(features, vtc_cls, budget)


def check_order(score: Tensor, recorded: Tensor) -> None:
    """Falling score in the recorded order; neighbours may swap only where float32 noise can swap them."""
    ours = choose.order(score)[:, : recorded.shape[1]]
    mine, theirs = (torch.gather(score, 1, index) for index in (ours, recorded))
    swapped = ours != recorded
    assert int(swapped.sum()) <= 4
    torch.testing.assert_close(mine[swapped], theirs[swapped], atol=0, rtol=2e-5)


def test_the_comparison_has_power(flowcut: Recorded, vtc_cls: Recorded) -> None:
    """The unpruned model, a neighbouring budget and the other method all give something else."""
    pixels, ids = golden_inputs()
    graphs = golden_graphs()
    with torch.no_grad():
        features, _ = graphs.vision(pixels)
        whole, _ = answer(graphs, features, ids, torch.full((4,), 623), 1, banned=[2])
        _, fewer = carved(FlowCut(form="exact"), 120).graphs.vision(pixels)
        _, single = carved(FlowCut(form="single"), 128).graphs.vision(pixels)
        _, late = carved(VtcCls(layers=2), 128).graphs.vision(pixels)
    recorded = flowcut.stack("128", "kept").long()
    assert ((whole - flowcut.stack("128", "logits")).abs().amax(1) > 0.05).all()
    assert not torch.equal(recorded, vtc_cls.stack("128_s20", "kept").long())
    for i in IMAGES:
        assert not set(fewer["vision.layers.21"][i].tolist()) <= set(recorded[i].tolist())
    assert not torch.equal(single["vision.layers.21"], recorded)
    assert not torch.equal(late["vision.layers.22"], vtc_cls.stack("128_s20", "kept").long())
