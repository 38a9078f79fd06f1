"""Calibration: what a method decides per image, measured on samples and frozen into constants.

Memory is flat in the number of samples: per image only its counts and kept ids are held.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from tokcarve.passes.graph import Seen, TokenGraphs
from tokcarve.passes.insert import RewriteResult

__all__ = ["Agreement", "Observed", "agreement", "frozen_counts", "observe", "tokens_at"]


@dataclass(frozen=True, kw_only=True)
class Observed:
    """One image under the dynamic form: tokens alive after each site, and the ids that leave the vision graph."""

    counts: dict[str, int]
    kept: frozenset[int]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How well a frozen form follows its dynamic form: share of images with the same set, mean share of tokens kept
    by both, over `images` held-out images."""

    images: int
    identical: float
    overlap: float


class _Watcher(fx.Interpreter):
    """Runs a graph and remembers the alive masks that its mask stages produce."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.alive: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n.op == "call_module" and str(n.target).startswith("select_alive_"):
            self.alive[str(n.target).removeprefix("select_alive_l")] = value
        return value


class _Listener(fx.Interpreter):
    """Runs a graph and keeps what one site gives."""

    def __init__(self, module: fx.GraphModule, site: str) -> None:
        super().__init__(module)
        self.site, self.rows = site, torch.empty(0)

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n.meta.get("site") == self.site:
            self.rows = value
        return value


@torch.no_grad()
def tokens_at(graphs: TokenGraphs, site: str, pixel_values: Tensor) -> Tensor:
    """The tokens float32 [batch, n, hidden] that leave `site` of a vision graph, without prefix rows."""
    listener = _Listener(graphs.vision, site)
    listener.run(pixel_values)
    return listener.rows[:, graphs.geometry.vision.prefix if site.startswith("vision.") else 0 :].float()


@torch.no_grad()
def observe(dynamic: RewriteResult, pixel_values: Tensor) -> list[Observed]:
    """What the dynamic form decides for each image of a batch [batch, 3, height, width]."""
    watcher = _Watcher(dynamic.graphs.vision)
    last = _at_the_end(dynamic, Seen(*watcher.run(pixel_values)))
    return [
        Observed(
            counts={f"vision.layers.{layer}": int(mask[i].sum()) for layer, mask in watcher.alive.items()},
            kept=frozenset(last[i].tolist()),
        )
        for i in range(pixel_values.shape[0])
    ]


def _at_the_end(result: RewriteResult, seen: Seen) -> Tensor:
    """Ids of the tokens that leave the vision graph: what it cuts is calibrated, whatever the language model drops."""
    if seen.kept:
        return list(seen.kept.values())[-1]
    return torch.arange(result.graphs.geometry.total).expand(seen.features.shape[0], -1)


def frozen_counts(observed: Sequence[Observed], tokens: int) -> dict[str, int]:
    """The mean count of every site, rounded, at least `tokens` and never rising with depth."""
    sites = list(observed[0].counts)
    frozen, alive = {}, None
    for site in sites:
        mean = sum(image.counts[site] for image in observed) / len(observed)
        count = max(tokens, round(mean))
        alive = count if alive is None else min(alive, count)
        frozen[site] = alive
    return frozen


@torch.no_grad()
def agreement(frozen: RewriteResult, batches: Iterable[tuple[Tensor, Sequence[Observed]]]) -> Agreement:
    """Compare the frozen form with what the dynamic form kept, image by image."""
    same, overlap, images = 0, 0.0, 0
    for pixel_values, expected in batches:
        last = _at_the_end(frozen, Seen(*frozen.graphs.vision(pixel_values)))
        for row, image in zip(last, expected, strict=True):
            ids = frozenset(row.tolist())
            same += ids == image.kept
            overlap += len(ids & image.kept) / len(image.kept)
            images += 1
    return Agreement(images=images, identical=same / images, overlap=overlap / images)
