"""What every method must do, whatever it is: the matrix a new method joins by its line in CASES."""

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from matrix import (
    CASES,
    EASY,
    HEADINGS,
    LAYERS,
    TOWERS,
    UNSORTED,
    VARIANTS,
    WHOLE,
    carve,
    easy,
    every_case,
    hears,
    inside,
    method_of,
    model,
    planned,
    prompts,
    run,
    watched,
)
from models import TOTAL, Tower, config, pictures
from torch import fx
from watcher import Watcher

from tokcarve.passes import families, methods
from tokcarve.passes.insert import rewrite
from tokcarve.passes.invariants import check_carved, rows_after
from tokcarve.passes.methods import METHODS
from tokcarve.passes.stage import Frozen, Method
from tokcarve.passes.taps import TAPS
from tokcarve.passes.text_taps import TEXT_TAPS


@every_case
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("tokens", [1, 7, 16, 63])
def test_exactly_the_budget_is_left(case: str, tower: Tower, tokens: int) -> None:
    result = carve(case, tower, tokens)
    check_carved(result.graphs, result.schedule)
    ran = run(result.graphs, pictures(2), case)
    ids = ran.ids
    entering = rows_after(result.graphs, result.schedule)["connector"]
    assert ran.features.shape == (2, entering, 48)
    assert ran.features.isfinite().all() and ran.logits.isfinite().all()
    assert (ids.dtype, ids.shape) == (torch.int64, (2, tokens))
    exits = any(record.how == "exit" for record in result.schedule)
    assert ran.rows == prompts(2, 0 if exits else tokens)[0].shape[1]
    if "published" in case or case.startswith(UNSORTED):
        ids = ids.sort(dim=1).values
    assert (ids[:, 1:] > ids[:, :-1]).all(), "ascending, and so unique"
    sends_cls = any(stage.takes_cls for stage in planned(case, result.graphs, tokens))
    assert ids.min() >= (-1 if sends_cls else 0) and ids.max() < TOTAL
    assert (result.schedule[-1].keep, result.modified) == (0 if exits else tokens, True)


@every_case
@pytest.mark.parametrize("tower", TOWERS)
def test_keeping_all_changes_nothing(case: str, tower: Tower) -> None:
    result = carve(case, tower, TOTAL)
    done = WHOLE.get(CASES[case][0], [])
    assert [record.how for record in result.schedule] == done
    assert result.modified == bool(done or result.graphs.gives)
    whole, ran = (run(graphs, pictures(2), case) for graphs in (families.capture(model(case, tower)), result.graphs))
    assert torch.equal(ran.features, whole.features) and torch.equal(ran.logits, whole.logits) == (not done)


@every_case
def test_the_same_image_gives_the_same_tokens(case: str) -> None:
    first, second = (run(carve(case, "clip", easy(case)).graphs, pictures(2), case) for _ in range(2))
    assert torch.equal(first.logits, second.logits) and torch.equal(first.ids, second.ids)


@every_case
def test_a_batch_is_a_loop(case: str) -> None:
    graphs = carve(case, "clip", easy(case)).graphs
    pixels = pictures(3)
    together = run(graphs, pixels, case)
    for i in range(3):
        alone = run(graphs, pixels, case, only=i)
        assert torch.equal(alone.ids[0], together.ids[i])
        torch.testing.assert_close(alone.features[0], together.features[i], atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.logits[0], together.logits[i], atol=1e-4, rtol=0)


@every_case
def test_a_constant_image_is_served(case: str) -> None:
    result = carve(case, "clip", easy(case))
    ran = run(result.graphs, torch.zeros(2, 3, 112, 112), case)
    assert ran.ids.shape[1] in (EASY, TOTAL) and ran.features.isfinite().all() and ran.logits.isfinite().all()
    # two questions about one image may need different tokens
    assert hears(planned(case, result.graphs, easy(case))) or torch.equal(ran.ids[0], ran.ids[1])


@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_of_half_precision_is_served(case: str, dtype: torch.dtype) -> None:
    result = carve(case, "clip", easy(case), dtype)
    ran = run(result.graphs, pictures(2).to(dtype), case)
    assert ran.features.dtype == ran.logits.dtype == dtype and ran.logits.isfinite().all()
    assert ran.ids.shape == (2, easy(case)) and all(len(set(row)) == easy(case) for row in ran.ids.tolist())


class Careful(fx.Interpreter):
    """Fails when a rule writes to what it was given, or scores in less than float32."""

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        if not str(target).startswith("select_rule_"):
            return super().call_module(target, args, kwargs)
        given = [{name: tensor.clone() for name, tensor in tensors.items()} for tensors in args]
        outcome = super().call_module(target, args, kwargs)
        for before, after in zip(given, args, strict=True):
            assert all(torch.equal(before[name], after[name]) for name in before), target
        assert all(t.dtype == torch.float32 for t in outcome.values() if t.is_floating_point()), target
        return outcome


@every_case
def test_a_rule_writes_to_nothing_and_scores_in_float32(case: str) -> None:
    result = carve(case, "clip", easy(case), torch.float16)
    pixels = pictures(2).half()
    before = pixels.clone()
    watched(result.graphs, pixels, Careful)
    assert torch.equal(pixels, before)


@every_case
def test_scores_are_finite(case: str) -> None:
    graphs = carve(case, "clip", easy(case)).graphs
    found = [pair for watcher in watched(graphs, pictures(2), Watcher) for pair in watcher.seen.items()]
    outcomes = [value for name, value in found if name.startswith("select_rule_")]
    assert CASES[case][0] in (*WHOLE, "downsample") or outcomes
    assert all(t.isfinite().all() for outcome in outcomes for t in outcome.values())


@every_case
def test_planning_needs_no_weights(case: str) -> None:
    tokens = easy(case)
    graphs = families.capture(families.empty(config(text_layers=LAYERS if inside(case) else 3)))
    stages = planned(case, families.capture(model(case)), tokens)
    result = rewrite(graphs, stages)
    check_carved(result.graphs, result.schedule)
    assert {p.device.type for p in result.graphs.vision.parameters()} == {"meta"}


@every_case
@pytest.mark.parametrize("tokens", [1, 16, 63, TOTAL])
def test_a_schedule_plans_itself_again(case: str, tokens: int) -> None:
    """An artifact stores the schedule; handed back as counts it must give the same stages."""
    result = carve(case, "clip", tokens)
    counts = {record.site: record.keep for record in result.schedule}
    fresh = families.capture(model(case))
    again = rewrite(fresh, planned(case, fresh, tokens, Frozen(counts=counts)))
    assert again.schedule == result.schedule
    assert again.graphs.vision.code == result.graphs.vision.code
    assert again.graphs.language.code == result.graphs.language.code
    assert again.graphs.decode.code == result.graphs.decode.code


@pytest.mark.parametrize("name", METHODS)
def test_the_header_is_a_datasheet(name: str) -> None:
    text = importlib.import_module(METHODS[name].__module__).__doc__ or ""
    starts = [line.split(" ")[0] for line in text.splitlines() if line and not line.startswith(" ")][1:]
    assert tuple(starts) == HEADINGS
    for line in text.splitlines():
        if line.split(" ")[0] in HEADINGS:
            assert line[:12].rstrip() in HEADINGS and len(line) > 12, "the text of a heading starts at column 12"


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_a_small_frozen_dataclass(name: str) -> None:
    cls = METHODS[name]
    assert dataclasses.is_dataclass(cls) and cls.__doc__
    method = cls()
    for field in dataclasses.fields(cls):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(method, field.name, None)
    assert method == cls() and hash(method) == hash(cls())
    source = Path(importlib.import_module(cls.__module__).__file__ or "")
    assert len(source.read_text().splitlines()) <= 150


@every_case
def test_the_facts_are_true(case: str) -> None:
    method = method_of(case)
    facts = dataclasses.asdict(method.facts)
    assert all(value for name, value in facts.items() if name not in ("text_aware", "reads")), facts
    graphs = families.capture(model(case))
    tokens = easy(case)
    stages = planned(case, graphs, tokens)
    read = {tap for stage in stages for tap in stage.reads}
    assert read <= set(TAPS) | set(TEXT_TAPS) and (case in VARIANTS or read == set(method.facts.reads))
    assert case in VARIANTS or method.facts.text_aware == hears(stages)
    assert not [stage.keep for stage in stages if stage.how != "exit" and not tokens <= stage.keep <= TOTAL]


def test_table_and_folder_agree() -> None:
    folder = Path(methods.__file__ or "").parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert {cls.__module__.rsplit(".", 1)[1] for cls in METHODS.values()} == files
    for stem in files:
        module = importlib.import_module(f"tokcarve.passes.methods.{stem}")
        found = {v for v in vars(module).values() if isinstance(v, type) and issubclass(v, Method) and v is not Method}
        assert {cls for cls in found if cls.__module__ == module.__name__} <= set(METHODS.values())
