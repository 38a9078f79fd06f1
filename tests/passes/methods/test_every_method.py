"""What every method must do, whatever it is: the matrix a new method joins by its line in CASES."""

import dataclasses
import functools
import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from greedy import at_last_row
from models import IMAGE, TOTAL, Tower, build, config, pictures, prompt
from torch import Tensor, fx
from watcher import Watcher

from tokcarve.passes import families, methods
from tokcarve.passes.calibrate import tokens_at
from tokcarve.passes.errors import MethodError
from tokcarve.passes.graph import Seen, TokenGraphs, all_kept, thread, visual_start
from tokcarve.passes.insert import RewriteResult, in_language, rewrite
from tokcarve.passes.invariants import check_carved, rows_after
from tokcarve.passes.methods import METHODS
from tokcarve.passes.stage import Frozen, Method, Stage
from tokcarve.passes.taps import TAPS, needs_cls
from tokcarve.passes.text_taps import TEXT_TAPS

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "random, another seed": ("random", {"seed": 3}),
    "flowcut exact": ("flowcut", {"form": "exact"}),
    "flowcut single": ("flowcut", {"form": "single"}),
    "flowcut exact, every layer": ("flowcut", {"form": "exact", "interval": 1}),
    "flowcut, language stage": ("flowcut", {"language_stage": True}),
    "as_vit threshold": ("as_vit", {"form": "threshold"}),
    "as_vit threshold, thresholds that few pass": ("as_vit", {"form": "threshold", "scale": 6.0}),
    "as_vit, summed": ("as_vit", {"accumulate": True}),
    "as_vit threshold, summed": ("as_vit", {"form": "threshold", "accumulate": True}),
    "as_vit, one cut": ("as_vit", {"layers": (2,), "thresholds": (0.02,)}),
    "vtc_cls, one layer": ("vtc_cls", {"layers": 1}),
    "hiprune, more anchors": ("hiprune", {"alpha": 0.3}),
    "hiprune, one layer": ("hiprune", {"object_layer": 5}),
    "visionzip, none folded": ("visionzip", {"contextual": 0.0}),
    "visionzip, published order": ("visionzip", {"order": "published"}),
    "visiondrop, published order": ("visiondrop", {"order": "published"}),
    "visiondrop, in the tower alone": ("visiondrop", {"scope": "encoder"}),
    "visiondrop, other layers": ("visiondrop", {"layers": (0, 6)}),
    "todre, without exit": ("todre", {"exit": False}),
    "holov, four bands": ("holov", {"crops": 4}),
    "holov, holistic": ("holov", {"rank_by": "holistic"}),
    "holov, the paper's": ("holov", {"rank_by": "holistic", "crops": 4, "alpha": 1.0}),
    "cdpruner, no relevance": ("cdpruner", {"theta": 0.0}),
    "recoverable, no clusters": ("recoverable", {"clusters": 0.0}),
    "recoverable, published order": ("recoverable", {"order": "published"}),
    "vflowopt with entropy": ("vflowopt", {"alpha": 0.5, "cell": 2.5}),
    "vflowopt, first cut alone": ("vflowopt", {"scope": "first"}),
    "vflowopt, steeper": ("vflowopt", {"cell": 4.0, "ratios": (0.75, 0.5), "layers": (2, 5)}),
    "llavolta, later": ("llavolta", {"layer": 5}),
    "dyvte, early": ("dyvte", {"layer": 0}),
    "tome, size ignored": ("tome", {"proportional": False}),
    "tome, published order": ("tome", {"order": "published"}),
    "pyramiddrop, one cut": ("pyramiddrop", {"layers": (2,)}),
    "pyramiddrop, a ratio": ("pyramiddrop", {"ratio": 0.3}),
    "sparsevlm plus": ("sparsevlm", {"version": "plus"}),
    "sparsevlm plus, one head": ("sparsevlm", {"version": "plus", "heads": 1}),
    "sparsevlm, early layers": ("sparsevlm", {"layers": (0, 1, 2)}),
    "tokencarve by eigenvectors": ("tokencarve", {"contribution": "eigh"}),
    "tokencarve by norm": ("tokencarve", {"contribution": "norm"}),
    "tokencarve by few directions": ("tokencarve", {"directions": 6}),
    "dart, one pivot each": ("dart", {"image_pivots": 1, "text_pivots": 1}),
    "dart, more words than there are": ("dart", {"text_pivots": 40}),
    "feather, a coarse grid": ("feather", {"stride": 4, "layers": (0, 1)}),
    "feather, first count": ("feather", {"first": 63}),
    "covipal, two narrow blocks": ("covipal", {"blocks": 2, "width": 8, "heads": 2}),
    "atp_llava, one cut": ("atp_llava", {"layers": (2,)}),
    "atp_llava, a coarse grid": ("atp_llava", {"stride": 3}),
    "atp_llava, budget": ("atp_llava", {"form": "budget"}),
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in METHODS} | VARIANTS
LAYERS = 8
EASY = 16  # a count that every method reaches on every tower it serves
# what methods do that serve no count but all: nothing, or no less to the answers than if they dropped tokens
WHOLE: dict[str, list[str]] = {"none": [], "dyvte": ["exit"], "redundancylens": ["lean"] * (LAYERS // 2)}
UNSORTED = ("sparsevlm", "visiondrop")  # merged tokens stand behind the kept ones
# taps that hear the question
ASKED = {
    "text",
    "text_rows",
    "last_attention",
    "next_last_attention",
    "last_logits",
    "last_logits_unrotated",
    "text_attention",
    "text_keys",
}
HEADINGS = ("Source", "Reads", "Gives", "Cost", "Differs", "Raises")
TOWERS: list[Tower] = ["clip", "siglip"]

every_case = pytest.mark.parametrize("case", CASES)


def method_of(case: str) -> Method:
    name, params = CASES[case]
    return METHODS[name](**params)


def easy(case: str) -> int:
    """A count that the case serves on every tower that it serves."""
    return TOTAL if CASES[case][0] in WHOLE else EASY


def planned(case: str, graphs: TokenGraphs, tokens: int, frozen: Frozen | None = None) -> tuple[Stage, ...]:
    """The stages of a case; a method that learns is fed four pictures first, one that trains is as it starts."""
    method = method_of(case)
    fit, trainee = method.fit(graphs.geometry, tokens), method.trainable(graphs.geometry, tokens)
    if trainee is not None:
        frozen = Frozen(counts=frozen.counts if frozen is not None else {}, tensors=trainee.start(0))
    if fit is not None:
        fit.add(tokens_at(families.capture(model(case, graphs.geometry.vision.kind)), fit.site, pictures(4, seed=9)))
        frozen = Frozen(tensors=fit.solve())
    return method.stages(graphs.geometry, tokens, frozen)


def hears(stages: tuple[Stage, ...]) -> bool:
    """Whether what they keep depends on the question."""
    return any(tap in ASKED for stage in stages for tap in stage.reads)


@functools.cache
def inside(case: str) -> bool:
    """Whether a case does anything in the language model."""
    geometry = families.capture(build("llama", text_layers=LAYERS)).geometry
    method = method_of(case)
    if case == "none" or method.fit(geometry, EASY) is not None:
        return False
    trainee = method.trainable(geometry, easy(case))
    frozen = None if trainee is None else Frozen(tensors=trainee.blank())
    return any(in_language(stage.site) for stage in method.stages(geometry, easy(case), frozen))


def model(case: str, tower: Tower = "clip", dtype: torch.dtype = torch.float32) -> Any:
    """A small model, with layers enough for methods that cut several times in the language model."""
    return build("llama", tower, dtype=dtype, text_layers=LAYERS if inside(case) else 3)


def carve(case: str, tower: Tower, tokens: int, dtype: torch.dtype = torch.float32) -> RewriteResult:
    """The graphs of a small model under one method; skips what the method does not serve."""
    if tower == "siglip" and needs_cls(method_of(case).facts.reads):
        pytest.skip("reads the [CLS] row, and a SigLIP tower has none")
    if case == "none" and tokens != TOTAL:
        pytest.skip("reduces nothing")
    graphs = families.capture(model(case, tower, dtype))
    try:
        stages = planned(case, graphs, tokens)
    except MethodError as error:
        assert tokens != easy(case), error
        pytest.skip(str(error))
    return rewrite(graphs, stages)


def prompts(batch: int, visual: int = 1) -> tuple[Tensor, Tensor]:
    """A question per image, each of another length, behind the same words before the image."""
    ids, lengths = prompt([6 + 3 * i for i in range(batch)], visual=visual)
    ids[:, :3] = ids[0, :3]
    return ids, lengths


@dataclasses.dataclass
class Ran:
    """Features that enter the language model, logits [batch, vocab] of the last row, ids kept at the end, and rows of
    text and visual tokens in the last layer. The language model runs only for what does something there."""

    features: Tensor
    logits: Tensor
    ids: Tensor
    rows: int


@torch.no_grad()
def run(graphs: TokenGraphs, pixels: Tensor, case: str, only: int | None = None) -> Ran:
    """Both graphs on a batch, or on one of its images alone with its prompt unpadded."""
    tokens = thread(graphs.vision).count
    asked, prompted = prompts(pixels.shape[0]), prompts(pixels.shape[0], tokens)
    if only is not None:
        at = slice(only, only + 1)
        pixels, asked, prompted = (pixels[at], *((ids[at, : n[only]], n[at]) for ids, n in (asked, prompted)))
    seen = graphs.see(pixels, *asked)
    if not inside(case):
        kept = list(seen.kept.values()) or [torch.arange(TOTAL).expand(pixels.shape[0], -1)]
        return Ran(seen.features, seen.features.flatten(1), kept[-1], prompted[0].shape[1])
    read, _ = graphs.read(prompted[0], seen, prompted[1], given(graphs, pixels.shape[0]))
    kept = list(all_kept(seen, read).values())
    dropped = prompted[0].shape[1] - read.logits.shape[1]
    last = torch.arange(TOTAL).expand(pixels.shape[0], -1)
    return Ran(
        features=seen.features,
        logits=at_last_row(read.logits, prompted[1] - dropped),
        ids=kept[-1] if kept else last,
        rows=read.logits.shape[1],
    )


def given(graphs: TokenGraphs, batch: int) -> dict[str, Tensor]:
    """What a caller hands to a method that keeps a state between calls."""
    tokens = thread(graphs.vision).count
    generator = torch.Generator().manual_seed(3)
    return {"guide": torch.rand(1, tokens, generator=generator).expand(batch, -1)}


def watched(graphs: TokenGraphs, pixels: Tensor, kind: type[Any]) -> list[Any]:
    """Both graphs run by an interpreter of that kind."""
    batch, tokens = pixels.shape[0], thread(graphs.vision).count
    vision, language = kind(graphs.vision), kind(graphs.language)
    with torch.no_grad():
        if not graphs.language_inputs:
            vision.run(pixels, *(prompts(batch) if graphs.reads_text else ()))
            return [vision]
        seen = Seen(*vision.run(pixels, *(prompts(batch) if graphs.reads_text else ())))
        ids, lengths = prompts(batch, tokens)
        embeds, positions = graphs.embedding(ids, seen.features)
        named = {"visual_start": visual_start(ids, IMAGE), **seen.handed, **given(graphs, batch)}
        language.run(embeds, positions, lengths, *(named[name] for name in graphs.language_inputs))
    return [vision, language]


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
