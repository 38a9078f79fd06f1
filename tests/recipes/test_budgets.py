"""What a budget comes to: counts found by planning, limits that hold, and refusals with what can be reached."""

from typing import Any

import pytest
from goldens_support import golden_graphs
from models import config

from tokcarve.passes import families
from tokcarve.passes.errors import BudgetError, MethodError
from tokcarve.passes.flops import count_flops, kv_bytes, rows_of
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.insert import rewrite
from tokcarve.passes.invariants import propagate_language
from tokcarve.passes.methods import METHODS
from tokcarve.recipes.budgets import resolve_budget
from tokcarve.recipes.carve import method_of
from tokcarve.recipes.schema import Budget

MIB = 2.0**20


@pytest.fixture(scope="module")
def deep() -> Geometry:
    """32 layers, 576 visual tokens."""
    return golden_graphs().geometry


def resolved(geometry: Geometry, method: str, params: dict[str, Any] | None = None, **budget: Any) -> int:
    return resolve_budget(Budget(**budget), method_of(method, params or {}), geometry)


@pytest.mark.parametrize(("layer", "average", "tokens"), [
    (2, 192, 166), (2, 128, 98), (2, 64, 30), (3, 192, 152), (3, 128, 82), (3, 64, 11),
])  # fmt: skip
def test_the_two_conventions_of_fastv(deep: Geometry, layer: int, average: int, tokens: int) -> None:
    """arXiv:2403.06764 keeps a count; tables that say "192 tokens on average" mean the mean over layers."""
    assert resolved(deep, "fastv", {"layer": layer}, avg_tokens=average) == tokens
    assert resolved(deep, "fastv", {"layer": layer}, tokens=average) == average


def test_before_the_language_model_the_mean_is_the_count(deep: Geometry) -> None:
    for method in ("vtc_cls", "divprune", "prune_and_merge"):
        assert resolved(deep, method, avg_tokens=100) == 100


@pytest.mark.parametrize("method", ["fastv", "pyramiddrop", "tokencarve", "visionzip"])
def test_limits_hold_and_one_token_more_breaks_them(deep: Geometry, method: str) -> None:
    def cost(count: int) -> tuple[float, float]:
        result = rewrite(golden_graphs(), METHODS[method]().stages(deep, count, None))
        stored = [key.shape[2] + 20 for key in propagate_language(result.graphs, text=30).keys]
        flops = count_flops(deep, rows_of(deep, result.schedule, 30)).prefill
        return kv_bytes(deep.text, stored) / MIB, flops

    kv, flops = cost(100)
    assert resolved(deep, method, kv_mib=kv, max_text=30, max_new=20) == 100
    assert resolved(deep, method, kv_mib=kv * 0.9999, max_text=30, max_new=20) == 99
    assert resolved(deep, method, prefill_flops=flops, max_text=30) == 100
    assert resolved(deep, method, prefill_flops=flops - 1, max_text=30) == 99


def test_pyramiddrop_cannot_average_below_what_its_layers_see(deep: Geometry) -> None:
    with pytest.raises(BudgetError) as refusal:
        resolved(deep, "pyramiddrop", avg_tokens=128)
    text = str(refusal.value)
    assert text.startswith("avg_tokens=128 cannot be reached by PyramidDrop on this model, whose schedules come to ")
    assert 144 < float(text.split("come to ")[1].split("..")[0]) < 170 and "..576 visual tokens per layer" in text
    assert resolved(deep, "pyramiddrop", {"layers": (1, 7, 15)}, avg_tokens=128) == 42


def test_a_cache_smaller_than_the_text_is_refused(deep: Geometry) -> None:
    need = kv_bytes(deep.text, (128,) * 32) / MIB
    with pytest.raises(BudgetError, match=rf"kv_mib={need / 2:.3}.*text alone needs {need:.2f} MiB"):
        resolved(deep, "fastv", kv_mib=float(f"{need / 2:.3}"))
    with pytest.raises(BudgetError, match="cannot be reached by FastV"):
        resolved(deep, "fastv", kv_mib=1e6)


def test_what_a_method_refuses_at_every_count_is_said(deep: Geometry) -> None:
    shallow = families.geometry(config(text_layers=1))
    with pytest.raises(MethodError, match="has 1 layers"):
        resolved(shallow, "fastv", avg_tokens=20)


def test_a_budget_record_names_the_rows_it_was_given_for() -> None:
    assert Budget(kv_mib=3.0).asked == {"kv_mib": 3.0, "max_text": 64, "max_new": 64}
    assert Budget(prefill_flops=3.0, max_text=5).asked == {"prefill_flops": 3.0, "max_text": 5}
    assert Budget(avg_tokens=3).asked == {"avg_tokens": 3}
