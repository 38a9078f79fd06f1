"""What every method must do, whatever it is: the matrix a new method joins by its line in CASES."""

import dataclasses
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from models import TOTAL, Tower, build, config, pictures, prompt
from torch import Tensor, fx
from watcher import Watcher

from tokcarve.passes import families, methods
from tokcarve.passes.calibrate import tokens_at
from tokcarve.passes.errors import MethodError
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.insert import RewriteResult, rewrite
from tokcarve.passes.invariants import check_carved
from tokcarve.passes.methods import METHODS
from tokcarve.passes.stage import Frozen, Method, Stage
from tokcarve.passes.taps import TAPS, needs_cls

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "random, another seed": ("random", {"seed": 3}),
    "flowcut exact": ("flowcut", {"form": "exact"}),
    "flowcut single": ("flowcut", {"form": "single"}),
    "flowcut exact, every layer": ("flowcut", {"form": "exact", "interval": 1}),
    "vtc_cls, one layer": ("vtc_cls", {"layers": 1}),
    "hiprune, more anchors": ("hiprune", {"alpha": 0.3}),
    "hiprune, one layer": ("hiprune", {"object_layer": 5}),
    "visionzip, none folded": ("visionzip", {"contextual": 0.0}),
    "visionzip, published order": ("visionzip", {"order": "published"}),
    "visiondrop, published order": ("visiondrop", {"order": "published"}),
    "holov, four bands": ("holov", {"crops": 4}),
    "holov, holistic": ("holov", {"rank_by": "holistic"}),
    "holov, the paper's": ("holov", {"rank_by": "holistic", "crops": 4, "alpha": 1.0}),
    "cdpruner, no relevance": ("cdpruner", {"theta": 0.0}),
    "recoverable, no clusters": ("recoverable", {"clusters": 0.0}),
    "recoverable, published order": ("recoverable", {"order": "published"}),
    "vflowopt with entropy": ("vflowopt", {"alpha": 0.5, "cell": 2.5}),
    "tome, size ignored": ("tome", {"proportional": False}),
    "tome, published order": ("tome", {"order": "published"}),
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in METHODS} | VARIANTS
EASY = 16  # a count that every method reaches on every tower it serves
HEADINGS = ("Source", "Reads", "Gives", "Cost", "Differs", "Raises")
TOWERS: list[Tower] = ["clip", "siglip"]

every_case = pytest.mark.parametrize("case", CASES)


def method_of(case: str) -> Method:
    name, params = CASES[case]
    return METHODS[name](**params)


def planned(case: str, graphs: TokenGraphs, tokens: int, frozen: Frozen | None = None) -> tuple[Stage, ...]:
    """The stages of a case; a method that learns is fed four pictures first."""
    method = method_of(case)
    fit = method.fit(graphs.geometry, tokens)
    if fit is not None:
        fit.add(tokens_at(families.capture(build("llama", graphs.geometry.vision.kind)), fit.site, pictures(4, seed=9)))
        frozen = Frozen(tensors=fit.solve())
    return method.stages(graphs.geometry, tokens, frozen)


def carve(case: str, tower: Tower, tokens: int, dtype: torch.dtype = torch.float32) -> RewriteResult:
    """The graphs of a small model under one method; skips what the method does not serve."""
    if tower == "siglip" and needs_cls(method_of(case).facts.reads):
        pytest.skip("reads the [CLS] row, and a SigLIP tower has none")
    if case == "none" and tokens != TOTAL:
        pytest.skip("reduces nothing")
    graphs = families.capture(build("llama", tower, dtype=dtype))
    try:
        stages = planned(case, graphs, tokens)
    except MethodError as error:
        assert tokens != EASY, error
        pytest.skip(str(error))
    return rewrite(graphs, stages)


def prompts(batch: int) -> tuple[Tensor, Tensor]:
    """A question per image, each of another length."""
    return prompt([6 + 3 * i for i in range(batch)], visual=1)


@torch.no_grad()
def run(graphs: TokenGraphs, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Features, and the ids kept at the end."""
    features, kept = graphs.see(pixels, *prompts(pixels.shape[0]))
    last = list(kept.values())[-1] if kept else torch.arange(TOTAL).expand(pixels.shape[0], -1)
    return features, last


def inputs(graphs: TokenGraphs, pixels: Tensor) -> tuple[Tensor, ...]:
    """What the vision graph itself takes."""
    return (pixels, *prompts(pixels.shape[0])) if graphs.reads_text else (pixels,)


@every_case
@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("tokens", [1, 7, 16, 63])
def test_exactly_the_budget_is_left(case: str, tower: Tower, tokens: int) -> None:
    result = carve(case, tower, tokens)
    check_carved(result.graphs, result.schedule)
    features, ids = run(result.graphs, pictures(2))
    assert features.shape == (2, tokens, 48)
    assert features.isfinite().all()
    assert (ids.dtype, ids.shape) == (torch.int64, (2, tokens))
    if "published" in case:
        ids = ids.sort(dim=1).values
    assert (ids[:, 1:] > ids[:, :-1]).all(), "ascending, and so unique"
    sends_cls = any(stage.takes_cls for stage in planned(case, result.graphs, tokens))
    assert ids.min() >= (-1 if sends_cls else 0) and ids.max() < TOTAL
    assert (result.schedule[-1].keep, result.modified) == (tokens, True)


@every_case
@pytest.mark.parametrize("tower", TOWERS)
def test_keeping_all_changes_nothing(case: str, tower: Tower) -> None:
    result = carve(case, tower, TOTAL)
    assert (result.modified, result.schedule) == (False, ())
    whole, _ = run(families.capture(build("llama", tower)), pictures(2))
    assert torch.equal(run(result.graphs, pictures(2))[0], whole)


@every_case
def test_the_same_image_gives_the_same_tokens(case: str) -> None:
    first, second = (run(carve(case, "clip", 16).graphs, pictures(2)) for _ in range(2))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])


@every_case
def test_a_batch_is_a_loop(case: str) -> None:
    graphs = carve(case, "clip", 16).graphs
    pixels = pictures(3)
    features, ids = run(graphs, pixels)
    for i in range(3):
        ids_of, lengths = prompts(3)
        with torch.no_grad():
            alone, kept = graphs.see(pixels[i : i + 1], ids_of[i : i + 1], lengths[i : i + 1])
        chosen = list(kept.values())[-1] if kept else ids[i : i + 1]
        assert torch.equal(chosen[0], ids[i])
        torch.testing.assert_close(alone[0], features[i], atol=1e-5, rtol=0)


@every_case
def test_a_constant_image_is_served(case: str) -> None:
    result = carve(case, "clip", 16)
    features, ids = run(result.graphs, torch.zeros(2, 3, 112, 112))
    assert features.shape[1] == 16 and features.isfinite().all()
    # two questions about one image may need different tokens
    assert method_of(case).facts.text_aware or torch.equal(ids[0], ids[1])


@every_case
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_of_half_precision_is_served(case: str, dtype: torch.dtype) -> None:
    result = carve(case, "clip", 16, dtype)
    features, ids = run(result.graphs, pictures(2).to(dtype))
    assert features.dtype == dtype and features.isfinite().all()
    assert ids.shape == (2, 16) and all(len(set(row)) == 16 for row in ids.tolist())


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
    result = carve(case, "clip", 16, torch.float16)
    pixels = pictures(2).half()
    before = pixels.clone()
    with torch.no_grad():
        Careful(result.graphs.vision).run(*inputs(result.graphs, pixels))
    assert torch.equal(pixels, before)


@every_case
def test_scores_are_finite(case: str) -> None:
    graphs = carve(case, "clip", 16).graphs
    watcher = Watcher(graphs.vision)
    with torch.no_grad():
        watcher.run(*inputs(graphs, pictures(2)))
    outcomes = [value for name, value in watcher.seen.items() if name.startswith("select_rule_")]
    assert case in ("none", "downsample") or outcomes
    assert all(t.isfinite().all() for outcome in outcomes for t in outcome.values())


@every_case
def test_planning_needs_no_weights(case: str) -> None:
    tokens = TOTAL if case == "none" else EASY
    graphs = families.capture(families.empty(config()))
    stages = planned(case, families.capture(build()), tokens)
    result = rewrite(graphs, stages)
    check_carved(result.graphs, result.schedule)
    assert {p.device.type for p in result.graphs.vision.parameters()} == {"meta"}


@every_case
@pytest.mark.parametrize("tokens", [1, 16, 63, TOTAL])
def test_a_schedule_plans_itself_again(case: str, tokens: int) -> None:
    """An artifact stores the schedule; handed back as counts it must give the same stages."""
    result = carve(case, "clip", tokens)
    counts = {record.site: record.keep for record in result.schedule}
    fresh = families.capture(build())
    again = rewrite(fresh, planned(case, fresh, tokens, Frozen(counts=counts)))
    assert again.schedule == result.schedule
    assert again.graphs.vision.code == result.graphs.vision.code


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
    graphs = families.capture(build())
    tokens = TOTAL if case == "none" else 16
    stages = planned(case, graphs, tokens)
    read = {tap for stage in stages for tap in stage.reads}
    assert read <= set(TAPS) and (case in VARIANTS or read == set(method.facts.reads))
    assert method.facts.text_aware == ("text" in read)
    assert not [stage.keep for stage in stages if not tokens <= stage.keep <= TOTAL]


def test_table_and_folder_agree() -> None:
    folder = Path(methods.__file__ or "").parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert {cls.__module__.rsplit(".", 1)[1] for cls in METHODS.values()} == files
    for stem in files:
        module = importlib.import_module(f"tokcarve.passes.methods.{stem}")
        found = {v for v in vars(module).values() if isinstance(v, type) and issubclass(v, Method) and v is not Method}
        assert {cls for cls in found if cls.__module__ == module.__name__} <= set(METHODS.values())
