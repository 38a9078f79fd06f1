"""FastV against the authors' runs, hand cases, and what must not change the choice."""

import pytest
from goldens_support import IMAGES, Recorded, carved, check_read, golden_graphs
from twelve import SEEN

from tokcarve.passes.choose import top_in_order
from tokcarve.passes.errors import MethodError
from tokcarve.passes.methods.fastv import FastV

SITE = "language.layers.1"


@pytest.fixture(scope="module")
def golden() -> Recorded:
    return Recorded("fastv")


@pytest.mark.parametrize("tokens", [192, 128, 64, 32, 166, 98, 30])
def test_the_recorded_runs(golden: Recorded, tokens: int) -> None:
    budget = str(tokens)
    assert all(golden.trusted(image, budget) for image in IMAGES)
    result = carved(FastV(), tokens)
    check_read(result, golden, budget, {SITE: "kept"}, spoken="gen_kvcache")


def test_a_neighbouring_budget_or_layer_is_not_the_recorded_run(golden: Recorded) -> None:
    for method, tokens in ((FastV(), 65), (FastV(layer=3), 64)):
        with pytest.raises(AssertionError):
            check_read(carved(method, tokens), golden, "64", {}, spoken="gen_kvcache")


def test_the_fixture_of_twelve() -> None:
    (stage,) = FastV().stages(golden_graphs().geometry, 5, None)
    score = stage.rule({"last_attention": SEEN.unsqueeze(1)}, {})["score"]
    assert top_in_order(score, 5).tolist() == [[0, 3, 4, 7, 11]]


def test_a_layer_outside_the_model_is_refused() -> None:
    with pytest.raises(MethodError, match="32 layers.*behind layers 0..30.*behind layer 31"):
        FastV(layer=32).stages(golden_graphs().geometry, 64, None)
