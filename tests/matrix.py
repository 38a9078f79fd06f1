"""The matrix of methods: the cases that every method joins by its line in METHODS, and how one is run."""

import dataclasses
import functools
from typing import Any

import pytest
import torch
from greedy import at_last_row
from models import IMAGE, TOTAL, Tower, build, pictures, prompt
from torch import Tensor

from tokcarve.passes import families
from tokcarve.passes.calibrate import tokens_at
from tokcarve.passes.errors import MethodError
from tokcarve.passes.graph import Seen, TokenGraphs, all_kept, thread, visual_start
from tokcarve.passes.insert import RewriteResult, in_language, rewrite
from tokcarve.passes.methods import METHODS
from tokcarve.passes.stage import Frozen, Method, Stage
from tokcarve.passes.taps import needs_cls

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
