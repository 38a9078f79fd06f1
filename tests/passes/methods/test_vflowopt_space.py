"""What a search may vary of VFlowOpt: its five dimensions, and the one mean that all points have."""

import functools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import TOTAL, build

from tokcarve.passes import families
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.methods.vflowopt import VFlowOpt
from tokcarve.recipes.budgets import mean_tokens


@functools.cache
def deep(layers: int = 32) -> Geometry:
    """The small model with a language model of so many layers."""
    geometry = families.capture(build()).geometry
    return replace(geometry, text=replace(geometry.text, layers=layers))


class TestSpace:
    def test_five_dimensions_for_a_mean_four_for_a_count(self) -> None:
        free = VFlowOpt().space(deep(), 40, exact=False)
        assert list(free) == ["threshold", "alpha", "cell", "entering", "ratios.0"]
        assert [(free[name].low, free[name].high) for name in ("threshold", "alpha")] == [(0, 50), (-1, 1)]
        assert free["cell"].low == 1.0 and free["cell"].high == pytest.approx(24 * 8 / 27)
        assert list(VFlowOpt().space(deep(), 40, exact=True)) == ["threshold", "alpha", "cell", "entering"]
        assert list(VFlowOpt(scope="first").space(deep(), 40, exact=False)) == ["threshold", "alpha", "cell"]
        assert VFlowOpt().space(deep(), TOTAL, exact=False) == {}
        one = VFlowOpt(layers=(9,), ratios=(0.5,))
        assert "entering" in one.space(deep(), 16, exact=False) and "entering" not in one.space(deep(), 16, exact=True)

    def test_cells_are_the_published_ones_on_the_published_grid(self) -> None:
        geometry = deep()
        geometry = replace(geometry, vision=replace(geometry.vision, grid=(27, 27)), total=729)
        cell = VFlowOpt().space(geometry, 64, exact=True)["cell"]
        assert (cell.low, cell.high, cell.start) == (3, 24, 15.581)

    def test_what_enters_is_one_to_one_and_a_half_times_the_mean(self) -> None:
        free = VFlowOpt().space(deep(), 30, exact=False)["entering"]
        mean = mean_tokens(VFlowOpt(), deep(), 30)
        assert free.low * TOTAL == pytest.approx(mean, abs=1) and free.high * TOTAL == pytest.approx(1.5 * mean, abs=1)

    @given(st.integers(8, TOTAL - 1), st.integers(4, 40), st.booleans(), st.data())
    def test_every_point_has_the_mean_of_the_defaults(
        self, tokens: int, layers: int, exact: bool, data: st.DataObject
    ) -> None:
        geometry, method = deep(layers), VFlowOpt(cell=8.0)
        space = method.space(geometry, tokens, exact=exact)
        point = {name: data.draw(st.floats(span.low, span.high)) for name, span in space.items() if name != "cell"}
        other, count = method.at(point, geometry, tokens, exact=exact)
        assert isinstance(other, VFlowOpt) and (count == tokens or not exact)
        assert all(0 < ratio <= 1 for ratio in other.ratios)
        wanted, found = mean_tokens(method, geometry, tokens), mean_tokens(other, geometry, count)
        assert wanted - 0.5 < found <= wanted + 1e-9
        assert (other.threshold, other.alpha, other.cell) == (point["threshold"], point["alpha"], 8.0)

    @pytest.mark.parametrize("exact", [True, False])
    def test_the_start_and_no_point_at_all_are_the_method_itself(self, exact: bool) -> None:
        method = VFlowOpt(cell=4.0)
        start = {name: span.start for name, span in method.space(deep(), 30, exact=exact).items()}
        plans = [method.stages(deep(), 30, None)]
        for point in (start, {}):
            other, count = method.at(point, deep(), 30, exact=exact)
            plans.append(other.stages(deep(), count, None))
        assert [[(s.site, s.keep) for s in plan] for plan in plans] == [[(s.site, s.keep) for s in plans[0]]] * 3
