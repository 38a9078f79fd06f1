"""What methods declare for a search can be planned, at one mean and within the limits that were asked for."""

import functools

from hypothesis import given
from hypothesis import strategies as st
from models import TOTAL, build

from tokcarve.passes import families
from tokcarve.passes.flops import count_flops, rows_of
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.methods import METHODS
from tokcarve.passes.methods.vflowopt import VFlowOpt
from tokcarve.recipes.budgets import mean_tokens, within
from tokcarve.recipes.schema import Budget


def test_equal_means_may_break_a_limit_on_flops() -> None:
    """Attention costs more where many tokens meet than where few do in more layers."""
    level, steep = (VFlowOpt(cell=8.0, ratios=ratios) for ratios in ((1.0, 1.0), (0.5, 0.5)))
    assert mean_tokens(level, _geometry(), 28) == mean_tokens(steep, _geometry(), 12) == 28
    flops = count_flops(_geometry(), rows_of(_geometry(), level.stages(_geometry(), 28, None), 64)).prefill
    asked = Budget(prefill_flops=flops)
    assert within(asked, level, _geometry(), 28) and not within(asked, steep, _geometry(), 12)
    assert within(Budget(tokens=28), steep, _geometry(), 12), "no limit"


@given(st.sampled_from(list(METHODS)), st.integers(5, TOTAL - 1), st.booleans(), st.data())
def test_what_a_method_declares_can_be_planned(name: str, tokens: int, exact: bool, data: st.DataObject) -> None:
    geometry, method = _geometry(), METHODS[name]()
    space = method.space(geometry, tokens, exact=exact)
    assert (not space) == (name not in ("vflowopt", "hiprune", "visionzip"))
    for span in space.values():
        assert span.low < span.high and (span.low <= span.start <= span.high or isinstance(method, VFlowOpt))
    point = {key: data.draw(st.floats(span.low, span.high)) for key, span in space.items() if key != "cell"}
    other, count = method.at(point, geometry, tokens, exact=exact)
    assert mean_tokens(other, geometry, count) <= mean_tokens(method, geometry, tokens) if space else other == method


@functools.cache
def _geometry() -> Geometry:
    return families.capture(build("qwen2", "clip", vision_layers=3, text_layers=3)).geometry
