"""FlowCut and VTC-CLS against what their authors' code selected, on every recorded image and budget."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from greedy import answer
from torch import Tensor
from transformers import LlavaForConditionalGeneration
from watcher import Watcher

from tokcarve.passes import choose, families
from tokcarve.passes.calibrate import observe
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.insert import RewriteResult, rewrite
from tokcarve.passes.methods.flowcut import FlowCut
from tokcarve.passes.methods.vtc_cls import VtcCls
from tokcarve.passes.stage import Method

GOLDENS = Path(__file__).parents[1] / "goldens"
IMAGES = range(4)
IMAGE_TOKEN = 319
FLOWCUT_BUDGETS = (192, 128, 64, 32)
VTC_BUDGETS = [(tokens, start) for start in (20, 16) for tokens in (256, 192, 128, 64, 32)]


class Recorded:
    """One method's recorded arrays; `stack` gives one name over all images."""

    def __init__(self, name: str) -> None:
        with np.load(GOLDENS / f"{name}.npz") as arrays:
            self.arrays = {key: arrays[key] for key in arrays.files}

    def get(self, image: int, budget: str, name: str) -> Any:
        return self.arrays[f"img{image}/{budget}/{name}"]

    def stack(self, budget: str, name: str) -> Tensor:
        return torch.from_numpy(np.stack([self.get(i, budget, name) for i in IMAGES]))

    def trusted(self, image: int, budget: str) -> bool:
        return bool(self.get(image, budget, "margin_ok") or self.get(image, budget, "f64_agree"))


@pytest.fixture(scope="module")
def graphs() -> TokenGraphs:
    model: Any = LlavaForConditionalGeneration.from_pretrained(GOLDENS / "model", attn_implementation="sdpa")
    return families.capture(model)


@pytest.fixture(scope="module")
def inputs() -> tuple[Tensor, Tensor]:
    with np.load(GOLDENS / "inputs.npz") as arrays:
        return torch.from_numpy(arrays["pixel_values"]), torch.from_numpy(arrays["input_ids"]).long()


@pytest.fixture(scope="module")
def flowcut() -> Recorded:
    return Recorded("flowcut")


@pytest.fixture(scope="module")
def vtc_cls() -> Recorded:
    return Recorded("vtc_cls")


def carved(graphs: TokenGraphs, method: Method, tokens: int) -> RewriteResult:
    return rewrite(graphs, method.stages(graphs.geometry, tokens, None))


def pruned_prompt(ids: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Prompts [batch, rows] with `tokens` image tokens left of the recorded ones, and their lengths."""
    image = ids == IMAGE_TOKEN
    rows = ids[~image | (torch.cumsum(image, 1) <= tokens)].view(ids.shape[0], -1)
    return rows, torch.full((ids.shape[0],), rows.shape[1])


def check_answers(graphs: TokenGraphs, features: Tensor, ids: Tensor, golden: Recorded, budget: str) -> None:
    torch.testing.assert_close(features, golden.stack(budget, "feat"), atol=5e-4, rtol=0)
    rows, lengths = pruned_prompt(ids, features.shape[1])
    logits, tokens = answer(graphs, features, rows, lengths, 8, banned=[2])
    torch.testing.assert_close(logits, golden.stack(budget, "logits"), atol=1e-3, rtol=0)
    assert torch.equal(tokens, golden.stack(budget, "gen").long())


@pytest.mark.parametrize("tokens", FLOWCUT_BUDGETS)
def test_flowcut_keeps_what_its_authors_code_keeps(
    graphs: TokenGraphs, inputs: tuple[Tensor, Tensor], flowcut: Recorded, tokens: int
) -> None:
    assert all(flowcut.trusted(i, str(tokens)) for i in IMAGES), "the recorded cuts have no near ties"
    result = carved(graphs, FlowCut(form="exact"), tokens)
    pixels, ids = inputs
    with torch.no_grad():
        features, kept = result.graphs.vision(pixels)
    assert torch.equal(kept["vision.layers.21"], flowcut.stack(str(tokens), "kept").long())
    check_answers(graphs, features, ids, flowcut, str(tokens))


@pytest.mark.parametrize("tokens", FLOWCUT_BUDGETS)
def test_flowcut_goes_the_same_way_layer_by_layer(
    graphs: TokenGraphs, inputs: tuple[Tensor, Tensor], flowcut: Recorded, tokens: int
) -> None:
    watcher = Watcher(carved(graphs, FlowCut(form="exact"), tokens).graphs.vision)
    with torch.no_grad():
        watcher.run(inputs[0])
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
def test_calibration_observes_the_recorded_counts(
    graphs: TokenGraphs, inputs: tuple[Tensor, Tensor], flowcut: Recorded, tokens: int
) -> None:
    seen = observe(carved(graphs, FlowCut(form="exact"), tokens), inputs[0])
    for i, image in enumerate(seen):
        counts = flowcut.get(i, str(tokens), "layer_counts")
        assert image.counts == {f"vision.layers.{layer}": int(counts[layer]) for layer in range(1, 20, 2)}
        assert image.kept == set(flowcut.get(i, str(tokens), "kept").tolist())


@pytest.mark.parametrize(("tokens", "start"), VTC_BUDGETS)
def test_vtc_cls_keeps_what_its_authors_code_keeps(
    graphs: TokenGraphs, inputs: tuple[Tensor, Tensor], vtc_cls: Recorded, tokens: int, start: int
) -> None:
    budget = f"{tokens}_s{start}"
    assert all(vtc_cls.trusted(i, budget) for i in IMAGES), "the recorded cuts have no near ties"
    watcher = Watcher(carved(graphs, VtcCls(layers=23 - start), tokens).graphs.vision)
    pixels, ids = inputs
    with torch.no_grad():
        features, kept = watcher.run(pixels)
    assert torch.equal(kept["vision.layers.22"], vtc_cls.stack(budget, "kept").long())
    score = watcher.seen["select_rule_l22"]["score"]
    torch.testing.assert_close(score, vtc_cls.stack(budget, "score"), atol=1e-6, rtol=1e-4)
    check_order(score, vtc_cls.stack(budget, "topk_order").long())
    check_answers(graphs, features, ids, vtc_cls, budget)


def check_order(score: Tensor, recorded: Tensor) -> None:
    """Falling score in the recorded order; neighbours may swap only where float32 noise can swap them."""
    ours = choose.order(score)[:, : recorded.shape[1]]
    mine, theirs = (torch.gather(score, 1, index) for index in (ours, recorded))
    swapped = ours != recorded
    assert int(swapped.sum()) <= 4
    torch.testing.assert_close(mine[swapped], theirs[swapped], atol=0, rtol=2e-5)


def test_the_comparison_has_power(
    graphs: TokenGraphs, inputs: tuple[Tensor, Tensor], flowcut: Recorded, vtc_cls: Recorded
) -> None:
    """The unpruned model, a neighbouring budget and the other method all give something else."""
    pixels, ids = inputs
    with torch.no_grad():
        features, _ = graphs.vision(pixels)
        whole, _ = answer(graphs, features, ids, torch.full((4,), 623), 1, banned=[2])
        _, fewer = carved(graphs, FlowCut(form="exact"), 120).graphs.vision(pixels)
        _, single = carved(graphs, FlowCut(form="single"), 128).graphs.vision(pixels)
        _, late = carved(graphs, VtcCls(layers=2), 128).graphs.vision(pixels)
    recorded = flowcut.stack("128", "kept").long()
    assert ((whole - flowcut.stack("128", "logits")).abs().amax(1) > 0.05).all()
    assert not torch.equal(recorded, vtc_cls.stack("128_s20", "kept").long())
    for i in IMAGES:
        assert not set(fewer["vision.layers.21"][i].tolist()) <= set(recorded[i].tolist())
    assert not torch.equal(single["vision.layers.21"], recorded)
    assert not torch.equal(late["vision.layers.22"], vtc_cls.stack("128_s20", "kept").long())
