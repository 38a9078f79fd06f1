"""A plan says what compress then does, for every method, without reading a weight."""

from pathlib import Path
from typing import Any

import models
import pytest
from transformers.utils.logging import disable_progress_bar

from tokcarve.exporters.device.boards import find_target
from tokcarve.exporters.forecast import Forecast, Setting
from tokcarve.exporters.plan import plan_recipe_in, with_count
from tokcarve.exporters.wish import largest_counts, where, wished
from tokcarve.passes import families
from tokcarve.passes.errors import BudgetError, ExportError, MethodError, RecipeError, TokcarveError
from tokcarve.passes.flops import count_flops, rows_of
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.known import KNOWN
from tokcarve.passes.methods import METHODS
from tokcarve.passes.stage import Stage
from tokcarve.recipes.budgets import stages_at
from tokcarve.recipes.carve import method_of, rewritten
from tokcarve.recipes.compress import plan_recipe
from tokcarve.recipes.make import make_recipe
from tokcarve.recipes.shapes import shapes_of

LLAVA = KNOWN["llava-1.5-7b"]
LEARNED = ("prune_and_merge", "covipal", "atp_llava")
KEEPS_ALL = ("none", "dyvte", "redundancylens")


@pytest.fixture(scope="module")
def graphs() -> TokenGraphs:
    return families.capture(families.empty(models.config(text_layers=6)))


@pytest.mark.parametrize("name", [name for name in METHODS if name not in LEARNED])
def test_a_plan_is_what_is_carved(name: str, graphs: TokenGraphs) -> None:
    recipe = make_recipe("small", method=name, tokens=64 if name in KEEPS_ALL else 16)
    planned = plan_recipe_in(recipe, Setting(geometry=graphs.geometry))
    carved = rewritten(graphs, planned.method, planned.tokens, None, recipe.positions)
    assert planned.forecast.schedule == carved.schedule
    rows = rows_of(graphs.geometry, carved.schedule, 0).text
    numbers = planned.forecast.numbers
    assert (numbers["tokens_entering"], numbers["tokens_mean"]) == (rows[0], sum(rows) / len(rows))


def test_a_plan_is_what_compress_writes(tmp_path: Path) -> None:
    disable_progress_bar()
    small = str(models.write(models.build(vision_layers=3), tmp_path / "small"))
    recipe = make_recipe(small, method="fastv", tokens=16)
    made = plan_recipe(recipe, out=tmp_path / "out").manifest
    record = plan_recipe_in(recipe, Setting(geometry=shapes_of(small))).record()
    assert record["schedule"] == [stage.model_dump(mode="json") for stage in made.schedule]
    assert record["numbers"] == pytest.approx(made.numbers.model_dump(mode="json"))
    assert record["kv_rows"] == list(made.kv_rows)
    assert record["method"] == {"name": "fastv", "params": made.method.params}
    assert record["budget"]["tokens"] == made.budget.tokens


@pytest.mark.parametrize("name", LEARNED)
def test_what_is_learned_is_planned_too(name: str) -> None:
    planned = plan_recipe_in(make_recipe("llava-1.5-7b", method=name, tokens=64), Setting(geometry=LLAVA))
    assert planned.forecast.schedule[-1].keep == 64
    assert "wants --samples" in planned.notes[0]


def test_both_sides_are_counted() -> None:
    forecast = Forecast(setting=Setting(geometry=LLAVA), stages=(Stage(site="connector", how="choose", keep=64),))
    pruned, unpruned = (count_flops(LLAVA, rows_of(LLAVA, cuts, 64)) for cuts in (forecast.schedule, ()))
    assert forecast.flops["prefill"] == {"pruned": pruned.prefill, "unpruned": unpruned.prefill}
    assert forecast.flops["encoder"]["pruned"] == forecast.flops["encoder"]["unpruned"]
    assert forecast.conventions["fastv"]["unpruned"] == pytest.approx(2.99e12, rel=2e-3)
    by_name = {one.module.name: one for one in forecast.boards}
    speedup = by_name["orin 64 GiB"].speedup
    assert 1 < speedup["prefill"] < forecast.flops["prefill"]["unpruned"] / forecast.flops["prefill"]["pruned"]
    assert speedup["prefill"] > speedup["first_token"] > speedup["end_to_end"]["16"] > speedup["end_to_end"]["256"] > 1
    assert (by_name["orin 64 GiB"].builds, by_name["orin-nano 8 GiB"].runs) == (True, False)


def test_releases_that_cannot_read_a_precision_are_left_out() -> None:
    stages = (Stage(site="connector", how="choose", keep=64),)

    def found(precision: str, target: str) -> tuple[str, ...]:
        setting = Setting(geometry=LLAVA, precision=precision, target=find_target(target))
        return Forecast(setting=setting, stages=stages).boards[0].releases

    assert found("fp16", "orin") == ("10.3", "10.16", "11")
    assert found("int4", "orin") == ("10.16", "11"), "int4 is written in opset 21, which 10.3 does not read"
    assert found("int4", "orin@10.3") == ()
    assert Forecast(setting=Setting(geometry=LLAVA, target=find_target("rtx")), stages=stages).boards == ()


@pytest.mark.parametrize("name", ["vtc_cls", "fastv", "downsample"])
def test_the_largest_count_meets_a_wish_and_the_next_does_not(name: str) -> None:
    setting = Setting(geometry=LLAVA, target=find_target("orin"))
    method = method_of(name, {})
    found = largest_counts(method, setting, 100.0)
    assert list(found) == ["orin 64 GiB", "orin 32 GiB"]

    def least(count: int, place: int) -> float:
        return setting.side(stages_at(method, LLAVA, count)).times(setting.modules[place]).first_token

    for place, one in enumerate(found.values()):
        assert one is not None
        assert least(one[0], place) == pytest.approx(one[1]) and one[1] <= 100.0
        more = next(count for count in range(one[0] + 8, LLAVA.total, 8) if _plannable(method, count))
        assert least(more, place) > 100.0


def _plannable(method: Any, count: int) -> bool:
    try:
        stages_at(method, LLAVA, count)
    except MethodError:
        return False
    return True


def test_methods_that_serve_are_told() -> None:
    some = {name: method_of(name, {}) for name in ("vtc_cls", "divprune", "dyvte", "none")}
    found = {
        one.method: one for one in wished(Setting(geometry=KNOWN["tiny"], target=find_target("orin-nx")), 1e6, some)
    }
    most = {name: {count[0] for count in one.counts.values() if count is not None} for name, one in found.items()}
    assert most == {"vtc_cls": {576}, "divprune": {576}, "dyvte": {576}, "none": {576}}, "all, where all can be had"
    nobody = wished(Setting(geometry=KNOWN["tiny"], target=find_target("orin-nx")), 1e-9, some)
    assert [count for one in nobody for count in one.counts.values()] == [None] * 8
    no_cls = Setting(geometry=KNOWN["llava-interleave-qwen-0.5b"], target=find_target("orin-nano"))
    assert [one.method for one in wished(no_cls, 1e6, some)] == ["divprune", "dyvte", "none"], "it has no [CLS] token"


def test_where_stages_cut() -> None:
    def cuts(name: str) -> str:
        return where(stages_at(method_of(name, {}), LLAVA, 64), LLAVA)

    assert {
        name: cuts(name) for name in ("downsample", "flowcut", "tome", "vtc_cls", "cdpruner", "fastv", "todre")
    } == {
        "downsample": "before the tower",
        "flowcut": "in the tower",
        "tome": "in the tower",
        "vtc_cls": "behind the tower",
        "cdpruner": "behind the tower",
        "fastv": "in the language model",
        "todre": "behind the tower and in the language model",
    }


def test_a_wish_settles_the_count_of_a_method() -> None:
    setting = Setting(geometry=LLAVA, target=find_target("orin"))
    recipe = make_recipe("llava-1.5-7b", method="vtc_cls", tokens=1)
    count = with_count(recipe, setting, 100.0).budget.tokens
    assert isinstance(count, int) and 1 < count < 576
    with pytest.raises(BudgetError, match="--latency 1 cannot be met by vtc_cls on orin 64 GiB in fp16"):
        with_count(recipe, setting, 1.0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"precision": "fp8"}, "--precision fp8 is none that export writes"),
        ({"text": 3}, "--max-text 3 is too small"),
        ({"new": 0}, "--max-new 0 is too small"),
        ({"text": 3457}, "make 4097 positions, and the model has 4096"),
        ({"of_peak": 0.0}, "--of-peak 0 is no share of a peak"),
        ({"of_peak": 1.5}, "--of-peak 1.5 is no share of a peak"),
    ],
)
def test_settings_that_are_none(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ExportError, match=words):
        Setting(geometry=LLAVA, **settings)


def test_wishes_that_are_none() -> None:
    orin, rtx = (Setting(geometry=LLAVA, target=find_target(name)) for name in ("orin", "rtx"))
    for setting, latency, words in (
        (orin, 0.0, "is no time"),
        (rtx, 10.0, "--target rtx has no published peaks"),
        (Setting(geometry=LLAVA), 10.0, "no --target was named"),
    ):
        with pytest.raises(ExportError, match=words):
            wished(setting, latency)


@pytest.mark.parametrize(
    ("asked", "error", "words"),
    [
        ({"method": "auto", "tokens": 64}, RecipeError, "samples decide"),
        ({"method": "hiprune", "tokens": (64, 128)}, RecipeError, "samples decide"),
        ({"method": "hiprune", "keep": "auto", "max_loss": 0.1}, RecipeError, "samples decide"),
        ({"method": "vtc_cls", "tokens": 577}, BudgetError, "tokens=577 does not fit the 576"),
        ({"method": "fastv", "avg_tokens": 1}, BudgetError, "avg_tokens=1 cannot be reached"),
        ({"method": "llavolta", "tokens": 64, "params": {"layer": 99}}, MethodError, "behind layer 98"),
    ],
)
def test_recipes_that_cannot_be_planned(asked: dict[str, Any], error: type[TokcarveError], words: str) -> None:
    with pytest.raises(error, match=words):
        plan_recipe_in(make_recipe("llava-1.5-7b", **asked), Setting(geometry=LLAVA))
