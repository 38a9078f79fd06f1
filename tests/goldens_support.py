"""What the authors' own code did on the golden model: recorded arrays, the model, its inputs, and the comparison."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from greedy import answer
from torch import Tensor
from transformers import LlavaForConditionalGeneration
from watcher import Watcher

from tokcarve.passes import families
from tokcarve.passes.graph import TokenGraphs, all_kept, visual_start
from tokcarve.passes.insert import RewriteResult, rewrite
from tokcarve.passes.stage import Method

__all__ = [
    "IMAGES",
    "Recorded",
    "carved",
    "check_answers",
    "check_read",
    "golden_graphs",
    "golden_inputs",
    "inside",
]

GOLDENS = Path(__file__).parent / "goldens"
IMAGES = range(4)
IMAGE_TOKEN = 319


class Recorded:
    """One method's recorded arrays; `stack` gives one name over all images."""

    def __init__(self, name: str) -> None:
        with np.load(GOLDENS / f"{name}.npz") as arrays:
            self.arrays = {key: arrays[key] for key in arrays.files}

    def get(self, image: int, budget: str, name: str) -> Any:
        return self.arrays[f"img{image}/{budget}/{name}"]

    def stack(self, budget: str, name: str) -> Tensor:
        return torch.from_numpy(np.stack([self.get(i, budget, name) for i in IMAGES]))

    def trusted(self, image: int, budget: str) -> bool:
        return bool(self.get(image, budget, "margin_ok") or self.get(image, budget, "f64_agree"))


@functools.cache
def golden_graphs() -> TokenGraphs:
    """The unpruned golden model, captured; do not write to it."""
    model: Any = LlavaForConditionalGeneration.from_pretrained(GOLDENS / "model", attn_implementation="sdpa")
    return families.capture(model)


@functools.cache
def golden_inputs() -> tuple[Tensor, Tensor]:
    """pixel_values float32 [4, 3, 336, 336] and input_ids int64 [4, 623] of the unpruned prompts."""
    with np.load(GOLDENS / "inputs.npz") as arrays:
        return torch.from_numpy(arrays["pixel_values"]), torch.from_numpy(arrays["input_ids"]).long()


def carved(method: Method, tokens: int) -> RewriteResult:
    """The golden model under `method`."""
    graphs = golden_graphs()
    return rewrite(graphs, method.stages(graphs.geometry, tokens, None))


def _pruned_prompt(ids: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Prompts [batch, rows] with `tokens` image tokens left of the recorded ones, and their lengths."""
    image = ids == IMAGE_TOKEN
    rows = ids[~image | (torch.cumsum(image, 1) <= tokens)].view(ids.shape[0], -1)
    return rows, torch.full((ids.shape[0],), rows.shape[1])


def check_read(
    result: RewriteResult,
    golden: Recorded,
    budget: str,
    kept: dict[str, str],
    spoken: str = "gen",
    images: Sequence[int] = IMAGES,
) -> None:
    """A method in the language model on the recorded prompts: patches kept behind each site {site: recorded name},
    logits of the last row within 1e-3, greedy tokens through the caches; `images` are run as one batch."""
    pixels, ids = (tensor[list(images)] for tensor in golden_inputs())
    graphs, lengths = result.graphs, torch.full((len(images),), ids.shape[1])
    with torch.no_grad():
        seen = graphs.see(pixels)
        rows, lengths = _pruned_prompt(ids, seen.features.shape[1])
        found = all_kept(seen, graphs.read(rows, seen, lengths)[0])
    for site, name in kept.items():
        for row, image in zip(found[site], images, strict=True):
            assert row.tolist() == golden.get(image, budget, name).tolist(), (site, image)
    logits, tokens = answer(graphs, seen, rows, lengths, 8, banned=[2])
    for row, said, image in zip(logits, tokens, images, strict=True):
        torch.testing.assert_close(row, torch.from_numpy(golden.get(image, budget, "logits")), atol=1e-3, rtol=0)
        assert said.tolist() == golden.get(image, budget, spoken).tolist(), image


def check_answers(features: Tensor, golden: Recorded, budget: str) -> None:
    """Features within 5e-4 of the recorded ones, logits of the last row within 1e-3; greedy tokens where recorded."""
    graphs = golden_graphs()
    torch.testing.assert_close(features, golden.stack(budget, "feat"), atol=5e-4, rtol=0)
    rows, lengths = _pruned_prompt(golden_inputs()[1], features.shape[1])
    spoken = f"img0/{budget}/gen" in golden.arrays
    logits, tokens = answer(graphs, features, rows, lengths, 8 if spoken else 1, banned=[2])
    torch.testing.assert_close(logits, golden.stack(budget, "logits"), atol=1e-3, rtol=0)
    if spoken:
        assert torch.equal(tokens, golden.stack(budget, "gen").long())


@torch.no_grad()
def inside(result: RewriteResult) -> dict[str, Any]:
    """What every module of the language graph returns on the recorded prompts, in one batch, by module name."""
    graphs, (pixels, ids) = result.graphs, golden_inputs()
    seen = graphs.see(pixels)
    rows, lengths = _pruned_prompt(ids, seen.features.shape[1])
    kept = list(seen.kept.values())
    embeds, positions = graphs.embedding(rows, seen.features, kept[-1] if kept else None)
    named = {"visual_start": visual_start(rows, IMAGE_TOKEN), **seen.handed}
    watcher = Watcher(graphs.language)
    watcher.run(embeds, positions, lengths, *(named[name] for name in graphs.language_inputs))
    return watcher.seen
