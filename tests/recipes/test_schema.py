import dataclasses
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tokcarve.passes.errors import BudgetError, MethodError, RecipeError, TokcarveError
from tokcarve.passes.methods import METHODS
from tokcarve.recipes.files import dump_recipe, load_recipe, parse_recipe, shipped_recipes
from tokcarve.recipes.make import make_recipe
from tokcarve.recipes.method_recipes import METHOD_RECIPES
from tokcarve.recipes.schema import Budget, Recipe

GOOD = "format: 1\nmodel: tiny\nmethod: {name: flowcut}\nbudget: {tokens: 64}\n"


def _faults(tmp_path: Path, text: str | bytes) -> list[str]:
    path = tmp_path / "r.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(RecipeError) as refusal:
        load_recipe(path)
    lines = str(refusal.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    return [line.removeprefix(f"{path}: ") for line in lines]


def test_recipes_and_methods_have_the_same_names() -> None:
    assert list(METHOD_RECIPES) == list(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_recipe_fields_are_those_of_the_method(name: str) -> None:
    fields = {field.name: field.default for field in dataclasses.fields(METHODS[name])}  # type: ignore[arg-type]
    entry = METHOD_RECIPES[name].model_fields
    assert {key: field.default for key, field in entry.items() if key != "name"} == fields
    assert METHODS[name](**METHOD_RECIPES[name].model_validate({"name": name}).parameters) == METHODS[name]()


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_load_and_round_trip(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(shipped_recipes()[name])
    (tmp_path / "again.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "again.yaml") == recipe
    assert dump_recipe(load_recipe(tmp_path / "again.yaml")) == dump_recipe(recipe)


def test_a_dumped_recipe_is_complete() -> None:
    recipe = parse_recipe({"model": "tiny", "method": {"name": "flowcut"}, "budget": {"keep": 0.11}}, "here")
    assert dump_recipe(recipe) == (
        "format: 1\nmodel: tiny\nmethod:\n  name: flowcut\n  form: static\n  ema: 0.5\n  interval: 2\n"
        "  assumed_entropy: 0.9\n  language_stage: false\nbudget:\n  keep: 0.11\npositions: renumbered\n"
    )


def test_every_fault_comes_in_one_answer(tmp_path: Path) -> None:
    text = """
format: 1
modle: tiny
method: {name: flowcut, emaa: 3, ema: 2, form: dynamic}
budget: {keep: 1.5}
calibration: {count: "3", sample: scenes}
"""
    assert _faults(tmp_path, text) == [
        "method.form: Input should be 'static', 'exact' or 'single', got 'dynamic'",
        "method.ema: Input should be less than or equal to 1, got 2",
        "method.emaa: unknown key, did you mean 'ema'; keys here are name, form, ema, interval, "
        "assumed_entropy, language_stage",
        "budget.keep: Input should be less than or equal to 1, got 1.5",
        "calibration.count: Input should be a valid integer, got '3'",
        "calibration.sample: unknown key, did you mean 'samples'; keys here are samples, count, seed, quantile, "
        "trials, steps, pinned",
        "modle: unknown key, did you mean 'model'; keys here are format, model, method, budget, positions, calibration",
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (
            GOOD.replace("flowcut", "flow_cut"),
            "method.name: unknown method 'flow_cut', did you mean 'flowcut'; ",
        ),
        (GOOD.replace("{name: flowcut}", "{form: static}"), "method.name: required, but not there; methods are none"),
        (GOOD.replace("{name: flowcut}", "flowcut"), "method"),
        (GOOD.replace("name: flowcut", "name: none, ema: 1"), "method.ema: unknown key; keys here are name"),
        (GOOD.replace("{tokens: 64}", "{}"), "budget: give exactly one of keep"),
        (GOOD.replace("tokens: 64", "tokens: 64, keep: 0.5"), "budget: give exactly one of keep"),
        (GOOD.replace("64", "0"), "budget.tokens: Input should be greater than or equal to 1, got 0"),
        (GOOD.replace("64", "64.0"), "budget.tokens: Input should be a valid integer, got 64.0"),
        (GOOD.replace("tokens: 64", "keep: .nan"), "budget.keep: Input should be"),
        (GOOD.replace("format: 1", "format: 2"), "format: Input should be 1, got 2"),
        (GOOD.replace("model: tiny", "model: [a]"), "model: Input should be a valid string, got ['a']"),
        (GOOD.replace("model: tiny\n", ""), "model: required, but not there"),
        (GOOD + "model: other\n", "not YAML: key 'model' occurs twice"),
        ("a: &a [1]\nb: *a\n", "not YAML: aliases are not used in recipes"),
        ("- 1\n", "holds list, not keys and values such as `model: tiny`"),
        ("", "holds NoneType, not keys and values such as `model: tiny`"),
        ("a: [", "not YAML: "),
        (b"\xff\xfe\x00", "not YAML: "),
        ("a: !!python/object/apply:os.system [ls]\n", "not YAML: could not determine a constructor"),
    ],
)
def test_what_a_recipe_refuses(tmp_path: Path, text: str | bytes, fault: str) -> None:
    assert any(line.startswith(fault) for line in _faults(tmp_path, text)), _faults(tmp_path, text)


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match="does not exist; shipped are llava15-flowcut-64, llava15-vtc-cls-128, orin-13b"
    ):
        load_recipe(tmp_path / "no.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path)
    (tmp_path / "large.yaml").write_text("#" * 70_000)
    with pytest.raises(RecipeError, match="is larger than 65536 bytes, so it is no recipe"):
        load_recipe(tmp_path / "large.yaml")


def test_recipes_do_not_change() -> None:
    recipe = make_recipe("tiny", method="vtc_cls", tokens=64)
    with pytest.raises(ValidationError):
        recipe.model = "other"  # type: ignore[misc]


def test_arguments_make_a_recipe() -> None:
    recipe = make_recipe("tiny", method="random", keep=0.11, samples="scenes", count=5, seed=3)
    assert recipe.method.parameters == {"seed": 3}
    assert recipe.calibration is not None
    assert recipe.calibration.model_dump(exclude_none=True) == {"samples": "scenes", "count": 5, "seed": 3}
    given = make_recipe("tiny", method="vflowopt", tokens=64, samples="scenes", params={"alpha": 0.0, "threshold": 2.0})
    assert given.calibration is not None and given.calibration.pinned == ("alpha",), "threshold is not at its default"
    assert make_recipe("tiny", method="random", keep=0.11, seed=3, params={"seed": 9}).method.parameters == {"seed": 9}
    assert recipe.budget.asked == {"keep": 0.11}
    assert Budget(tokens=7).asked == {"tokens": 7}
    assert isinstance(recipe, Recipe)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (
            {"method": "flow-cut"},
            MethodError,
            "unknown method 'flow-cut', did you mean 'flowcut'; choose one of ",
        ),
        ({"method": "x"}, MethodError, "unknown method 'x'; choose one of none, "),
        ({"params": {"frm": 1}}, MethodError, "unknown parameter 'frm' of flowcut, did you mean 'form'; it has form, "),
        ({"method": "none", "params": {"a": 1}}, MethodError, "unknown parameter 'a' of none; it has none"),
        ({"params": {"name": "x"}}, MethodError, "unknown parameter 'name' of flowcut; it has form, "),
        ({"keep": 0}, BudgetError, "keep=0 is not a share of the visual tokens; choose above 0 and at most 1"),
        ({"keep": 1.01}, BudgetError, "keep=1.01 is not a share of the visual tokens; choose above 0 and at most 1"),
        ({"keep": float("nan")}, BudgetError, "keep=nan is not a share"),
        ({"tokens": 0, "keep": None}, BudgetError, "tokens=0 is not a count of visual tokens; choose 1 or more"),
        ({"tokens": 4}, BudgetError, "both keep=0.5 and tokens=4 were given; give one of them"),
        ({"keep": None}, BudgetError, "no budget was given; give one of keep, tokens, avg_tokens"),
        ({"params": {"ema": "x"}}, RecipeError, "arguments: method.ema: Input should be a valid number, got 'x'"),
        ({"positions": "late"}, RecipeError, "arguments: positions: Input should be 'renumbered' or 'original'"),
        ({"samples": "s", "count": 0}, RecipeError, "arguments: calibration.count: Input should be greater than or"),
        ({"samples": "s", "seed": -1}, RecipeError, "arguments: calibration.seed: Input should be greater than or"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, object], error: type[TokcarveError], text: str) -> None:
    values: dict[str, object] = {"method": "flowcut", "keep": 0.5, **arguments}
    with pytest.raises(error) as refusal:
        make_recipe("tiny", **values)  # type: ignore[arg-type]
    assert str(refusal.value).startswith(text)


@pytest.mark.parametrize("asked", [{"method": "auto", "tokens": 64}, {"method": "hiprune", "tokens": (64, 128)}])
def test_what_many_samples_decide_gets_many(asked: dict[str, Any]) -> None:
    found = [make_recipe("tiny", count=count, **asked).calibration for count in (None, 5)]
    assert [one and (one.samples, one.count) for one in found] == [("scenes", 160), ("scenes", 5)]
