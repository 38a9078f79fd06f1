"""What every stage of a carved model keeps of one image, followed in torch from all patches on: which token is which
patch, what it scored, and which patches it stands for once tokens were merged."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor, fx

from tokcarve.exporters.pictures.kept import Kept
from tokcarve.passes.asking import Question, ask
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.insert import RewriteResult
from tokcarve.passes.stage import Stage
from tokcarve.passes.writer import module_name

__all__ = ["follow", "stages_of"]

_LEAST = 1e-6  # weight of a patch in a token below which it is not said to stand for it

Outcomes = Mapping[str, Any]
"""What the modules of a selection gave, by module name."""


def follow(result: RewriteResult, question: Question, new: int) -> tuple[tuple[Kept, ...], list[int]]:
    """What every stage keeps of one image, and `new` greedy tokens of the answer."""
    graphs = result.graphs
    with _overheard(graphs.vision, graphs.language) as heard:
        reply = ask(graphs, question, new)
    return stages_of(result.stages, heard, graphs.geometry), reply.tokens


@contextmanager
def _overheard(*modules: fx.GraphModule) -> Iterator[dict[str, Any]]:
    """What every module of a selection returns meanwhile, by its name."""
    heard = dict[str, Any]()
    handles = []
    for module in modules:
        for name, child in module.named_children():
            if name.startswith("select_"):

                def hear(_module: Any, _inputs: Any, made: Any, name: str = name) -> None:
                    heard[name] = made

                handles.append(child.register_forward_hook(hear))
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()


def stages_of(stages: Sequence[Stage], heard: Outcomes, geometry: Geometry) -> tuple[Kept, ...]:
    """The stages of one image, followed from all patches on through what their modules gave for a batch of one."""
    tokens, found = _Tokens.all(geometry.total), list[Kept]()
    for stage in stages:
        if stage.how == "observe":
            continue
        outcome = heard.get(module_name("rule", stage.site), {})
        before, scores = len(tokens.patches), tokens.scores(outcome)
        tokens = tokens.after(stage, outcome, heard, geometry)
        patches = tokens.living
        # a mask leaves as many tokens as the image decides, in a tensor that does not get shorter
        keep = len(patches) if stage.how == "mask" else stage.keep
        found.append(
            Kept(
                site=stage.site,
                total=before,
                keep=keep,
                how=stage.how,
                patches=patches,
                scores=scores,
                groups=tokens.groups(),
            )
        )
    return tuple(found)


@dataclass(frozen=True)
class _Tokens:
    """The visual tokens at one point: the patch of each, what weight every patch has in it float32 [n, total], and
    which are alive bool [n]."""

    patches: tuple[int, ...]
    weights: Tensor
    alive: Tensor

    @classmethod
    def all(cls, total: int) -> "_Tokens":
        return cls(tuple(range(total)), torch.eye(total), torch.ones(total, dtype=torch.bool))

    @property
    def living(self) -> tuple[int, ...]:
        return tuple(patch for patch, alive in zip(self.patches, self.alive.tolist(), strict=True) if alive)

    def scores(self, outcome: Outcomes) -> dict[int, float] | None:
        """By patch, of the tokens that are alive; a score that is no number is left out."""
        if "score" not in outcome:
            return None
        pairs = zip(self.patches, outcome["score"][0].tolist(), self.alive.tolist(), strict=True)
        return {patch: score for patch, score, alive in pairs if alive and isfinite(score)}

    def after(self, stage: Stage, outcome: Outcomes, heard: Outcomes, geometry: Geometry) -> "_Tokens":
        if stage.how == "lean":
            return self
        if stage.how == "exit":
            return _Tokens((), self.weights[:0], self.alive[:0])
        if stage.how == "resize":
            return _resized(heard[module_name("index", stage.site)][0], stage, geometry)
        if stage.how == "mask":
            return _Tokens(self.patches, self.weights, heard[module_name("alive", stage.site)][0])
        if stage.how == "choose":
            at = heard[module_name("choose", stage.site)][0]
            return _Tokens(tuple(self.patches[i] for i in at.tolist()), self.weights[at], self.alive[at])
        return self._merged(stage, outcome)

    def _merged(self, stage: Stage, outcome: Outcomes) -> "_Tokens":
        patches, weights, first = self.patches, self.weights, 0
        if stage.takes_cls:
            patches, first = (-1, *patches), 1
            weights = torch.cat([torch.zeros_like(weights[:1]), weights])
        at = outcome["index"][0] + first
        rows = weights if "sources" not in outcome else weights[outcome["sources"][0] + first]
        mixed = outcome["weights"][0].float() @ rows
        if "own" in outcome:
            mixed = mixed + outcome["own"][0].float().unsqueeze(-1) * weights[at]
        return _Tokens(tuple(patches[i] for i in at.tolist()), mixed, torch.ones(len(at), dtype=torch.bool))

    def groups(self) -> tuple[tuple[int, ...], ...] | None:
        """Every patch belongs to the living token in which it weighs most; None where none stands for another."""
        if not self.patches:
            return None
        weights = torch.where(self.alive.unsqueeze(1), self.weights.abs(), 0.0)
        most, owner = weights.max(dim=0)
        groups: list[list[int]] = [[] for _ in self.patches]
        for patch, (weight, token) in enumerate(zip(most.tolist(), owner.tolist(), strict=True)):
            if weight > _LEAST:
                groups[token].append(patch)
        pairs = [pair for pair, alive in zip(zip(self.patches, groups, strict=True), self.alive, strict=True) if alive]
        if all(set(group) <= {patch} for patch, group in pairs):
            return None
        return tuple(tuple(group) for _, group in pairs)


def _resized(index: Tensor, stage: Stage, geometry: Geometry) -> _Tokens:
    """A token for every cell of the smaller image, which stands for the patches whose middle it covers."""
    rows, columns = geometry.vision.grid
    assert stage.grid is not None
    weights = torch.zeros(len(index), geometry.total)
    for patch in range(geometry.total):
        row, column = divmod(patch, columns)
        cell = row * stage.grid[0] // rows * stage.grid[1] + column * stage.grid[1] // columns
        weights[cell, patch] = 1.0
    return _Tokens(tuple(index.tolist()), weights, torch.ones(len(index), dtype=torch.bool))
