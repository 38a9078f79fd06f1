"""The controls every report shows: no reduction, a random subset, a uniform grid.

Source      the field's common baselines; arXiv:2502.11501 shows that random and uniform beat several methods.
Reads       nothing: the choice is a constant of the graph.
Gives       score [batch, n] with the chosen tokens at 1 and the others at 0; higher means keep.
Cost        one gather; the choice folds away when the graph is loaded.
Differs     random: sorted ascending, one draw per seed, the same for every image, because a static graph holds no
            generator; report the mean over seeds. uniform: a lattice when the count has one, else even raster steps.
Raises      MethodError for a negative seed.
"""

import random
from dataclasses import dataclass
from typing import ClassVar

import torch

from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry, centres, even_positions, lattice
from tokcarve.passes.stage import Carry, Frozen, Method, MethodFacts, Outcome, Signals, Stage

__all__ = ["NoReduction", "Random", "Uniform"]


def _facts(title: str) -> MethodFacts:
    return MethodFacts(
        title=title,
        stage="after the last used vision layer",
        text_aware=False,
        reads=("tokens",),
        count="exact",
        cost="one gather",
        source="control",
        licence="none needed",
    )


def _fixed(geometry: Geometry, chosen: list[int]) -> tuple[Stage, ...]:
    members = set(chosen)
    marks = [1.0 if i in members else 0.0 for i in range(geometry.total)]

    def rule(signals: Signals, carry: Carry) -> Outcome:
        tokens = signals["tokens"]
        return {"score": torch.tensor(marks, device=tokens.device).unsqueeze(0).expand(tokens.shape[0], -1)}

    site = f"vision.layers.{geometry.vision.layers_used - 1}"
    return (Stage(site=site, reads=("tokens",), rule=rule, how="choose", keep=len(chosen)),)


@dataclass(frozen=True, kw_only=True)
class NoReduction(Method):
    """The unpruned model."""

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="none",
        stage="nowhere",
        text_aware=False,
        reads=(),
        count="all tokens",
        cost="nothing",
        source="control",
        licence="none needed",
    )

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """Nothing; refuses any other count than all."""
        if tokens != geometry.total:
            raise MethodError(
                f"method none keeps all {geometry.total} tokens; {tokens} were asked for: choose a method"
            )
        return ()


@dataclass(frozen=True, kw_only=True)
class Random(Method):
    """seed: of the one draw that becomes a constant of the graph."""

    seed: int = 0

    facts: ClassVar[MethodFacts] = _facts("random subset")

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """One cut before the connector."""
        if self.seed < 0:
            raise MethodError(f"seed={self.seed} of random is negative; choose 0 or above")
        if tokens == geometry.total:
            return ()
        return _fixed(geometry, random.Random(self.seed).sample(range(geometry.total), tokens))


@dataclass(frozen=True, kw_only=True)
class Uniform(Method):
    """Every token the same distance from the next."""

    facts: ClassVar[MethodFacts] = _facts("uniform grid")

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """One cut before the connector."""
        if tokens == geometry.total:
            return ()
        rows, columns = geometry.vision.grid
        shape = lattice(tokens, rows, columns)
        # a lattice far from the image's own shape is worse than even steps along the raster
        if shape is None or not 0.4 < (shape[0] / rows) / (shape[1] / columns) < 2.5:
            return _fixed(geometry, even_positions(tokens, geometry.total))
        return _fixed(geometry, centres(shape, geometry.vision.grid))
