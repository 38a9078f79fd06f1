"""What a method decides per image, measured, and frozen into constants."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx

from tokcarve.passes.decide import typical
from tokcarve.passes.graph import Seen, TokenGraphs
from tokcarve.passes.insert import RewriteResult

__all__ = ["Observed", "frozen_counts", "observe", "shared", "tokens_at"]


@dataclass(frozen=True, kw_only=True)
class Observed:
    """One image under the dynamic form: tokens alive after each site, the ids that leave the vision graph, and by site
    how many a rule says would stay if no count was set there."""

    counts: dict[str, int]
    kept: frozenset[int]
    passing: dict[str, int] = field(default_factory=dict)


class _Watcher(fx.Interpreter):
    """Runs a graph and remembers the alive masks that its mask stages produce, and what rules say would pass."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.alive: dict[str, Tensor] = {}
        self.passing: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n.op == "call_module" and str(n.target).startswith("select_alive_"):
            self.alive[str(n.target).removeprefix("select_alive_l")] = value
        if n.op == "call_module" and str(n.target).startswith("select_rule_l") and "passing" in value:
            self.passing[str(n.target).removeprefix("select_rule_l")] = value["passing"]
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
            passing={f"vision.layers.{layer}": int(passing[i]) for layer, passing in watcher.passing.items()},
        )
        for i in range(pixel_values.shape[0])
    ]


def _at_the_end(result: RewriteResult, seen: Seen) -> Tensor:
    """Ids of the tokens that leave the vision graph: what it cuts is calibrated, whatever the language model drops."""
    if seen.kept:
        return list(seen.kept.values())[-1]
    return torch.arange(result.graphs.geometry.total).expand(seen.features.shape[0], -1)


def frozen_counts(observed: Sequence[Mapping[str, int]], tokens: int, quantile: float | None = None) -> dict[str, int]:
    """The mean count of every site over images, or its `quantile`, rounded, at least `tokens` and never rising with
    depth."""
    frozen, alive = {}, None
    for site in observed[0]:
        counts = [image[site] for image in observed]
        count = max(tokens, round(typical(counts, quantile)))
        alive = count if alive is None else min(alive, count)
        frozen[site] = alive
    return frozen


@torch.no_grad()
def shared(dynamic: RewriteResult, frozen: RewriteResult, pixel_values: Tensor) -> float:
    """The share of what the dynamic form keeps of one image [1, 3, height, width] that the frozen form keeps too."""
    (wanted,) = observe(dynamic, pixel_values)
    found = _at_the_end(frozen, Seen(*frozen.graphs.vision(pixel_values)))
    return len(wanted.kept & set(found[0].tolist())) / len(wanted.kept)
