"""VisionDrop, encoder stage: its schedule, the recorded folds, and where it is VisionZip."""

import pytest
import torch
from goldens_support import IMAGES, Recorded, carved, golden_inputs
from models import TOTAL, build, config, pictures
from watcher import Watcher

from tokcarve.passes import families
from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.insert import rewrite
from tokcarve.passes.methods.visiondrop import VisionDrop
from tokcarve.passes.methods.visionzip import VisionZip

# budget of the paper -> tokens that enter the language model
ENTERS = {192: 288, 128: 192, 64: 96, 32: 48}
SITE = "vision.layers.22"


def clip_l() -> Geometry:
    made = config(vision_layers=24)
    made.vision_config.image_size = 336
    return families.geometry(made)


@pytest.mark.parametrize(
    ("total", "tokens", "contextual", "step"), [(576, 48, 6, 89), (576, 96, 12, 41), (576, 192, 24, 17), (64, 9, 2, 29)]
)
def test_one_in_eight_is_folded(total: int, tokens: int, contextual: int, step: int) -> None:
    geometry = clip_l() if total == 576 else families.geometry(config())
    (stage,) = VisionDrop(scope="encoder", order="published").stages(geometry, tokens, None)
    attention = torch.zeros(1, 1, total + 1)
    # the last patches are dominant, so that the rest counts from 0
    attention[:, :, 1 + total - (tokens - contextual - 1) :] = 1
    keys = torch.randn(1, 1, total + 1, 4, generator=torch.Generator().manual_seed(0))
    outcome = stage.rule({"cls_attention": attention, "keys": keys}, {})
    assert outcome["index"][0, -contextual:].tolist() == [step * i for i in range(contextual)]
    assert outcome["index"][0, 0] == -1
    assert (outcome["weights"].sum(dim=2) > 0).sum() <= contextual


@pytest.mark.parametrize("tokens", range(1, TOTAL))
def test_every_count_is_served(tokens: int) -> None:
    geometry = families.geometry(config())
    (stage,) = VisionDrop(scope="encoder").stages(geometry, tokens, None)
    attention = torch.rand(2, 3, TOTAL + 1, generator=torch.Generator().manual_seed(0))
    outcome = stage.rule({"cls_attention": attention, "keys": attention.unsqueeze(3)}, {})
    index = outcome["index"]
    assert index.shape == (2, tokens) and (index[:, 1:] > index[:, :-1]).all() and (index[:, 0] == -1).all()
    assert outcome["weights"].isfinite().all()


def test_it_is_visionzip_with_another_share() -> None:
    graphs = families.capture(build())
    with torch.no_grad():
        drop, zip_ = (
            rewrite(graphs, method.stages(graphs.geometry, 16, None)).graphs.vision(pictures(2))[0]
            for method in (VisionDrop(scope="encoder"), VisionZip(contextual=1 / 8))
        )
    assert torch.equal(drop, zip_)


def test_a_tower_without_cls_is_refused() -> None:
    graphs = families.capture(build("llama", "siglip"))
    with pytest.raises(MethodError, match=r"this siglip tower has no \[CLS\] token"):
        rewrite(graphs, VisionDrop(scope="encoder").stages(graphs.geometry, 16, None))


@pytest.fixture(scope="module")
def golden() -> Recorded:
    return Recorded("visiondrop")


@pytest.mark.parametrize("budget", ENTERS)
def test_it_folds_as_its_authors_code_folds(golden: Recorded, budget: int) -> None:
    """What enters the language model; its later cuts are in test_visiondrop_language.py."""
    name, tokens = str(budget), ENTERS[budget]
    assert all(golden.trusted(i, name) for i in IMAGES), "the recorded cuts have no near ties"
    dominant, contextual = golden.get(0, name, "schedule")[0].tolist()
    assert dominant + contextual == tokens
    watcher = Watcher(carved(VisionDrop(scope="encoder", order="published"), tokens).graphs.vision)
    with torch.no_grad():
        features, found = watcher.run(golden_inputs()[0])
    assert (found[SITE][:, 0] == -1).all()
    assert torch.equal(found[SITE][:, 1:dominant], golden.stack(name, "E_dominant_patches").long())
    outcome = watcher.seen["select_rule_l22"]
    score = watcher.seen["select_cls_attention_l22"].sum(dim=1)[:, 1:]
    torch.testing.assert_close(score, golden.stack(name, "E_score"), atol=1e-6, rtol=1e-4)
    for i in IMAGES:
        joined = outcome["weights"][i, dominant:].T > 0
        folded = joined.any(dim=1)
        assert joined[folded].long().argmax(dim=1).tolist() == golden.get(i, name, "E_assignment").tolist()
        assert found[SITE][i, dominant:].tolist() == golden.get(i, name, "E_targets").tolist()
    torch.testing.assert_close(features, golden.stack(name, "feat"), atol=5e-4, rtol=0)


def test_the_comparison_has_power(golden: Recorded) -> None:
    recorded = golden.stack("64", "feat")
    for method in (VisionDrop(scope="encoder"), VisionZip(order="published")):
        with torch.no_grad():
            features, _ = carved(method, 96).graphs.vision(golden_inputs()[0])
        assert ((features - recorded).abs().amax(dim=(1, 2)) > 0.05).all(), method
