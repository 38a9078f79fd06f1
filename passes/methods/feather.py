"""FEATHER: attention without RoPE, beside an even grid at first; far fewer tokens half-way.

Source      arXiv:2412.13180 v2 (ICCV 2025); code markendo/FEATHER @ c2a09b2.
Reads       last_logits_unrotated [batch, heads, n] of language layers 7 and 15 of 32.
Gives       score [batch, n]: softmax of the logits over the visual tokens alone, mean over heads, in [0, 1]; at the
            first cut 2 more for the tokens of the grid, every `stride`-th of every `stride`-th row. Higher means keep.
Cost        a key projection without RoPE and one row of logits per cut.
Differs     the grid adds to the count of the best, where the code's union of both has as many tokens as they do not
            share, so what it keeps at first is kept here too. Its first cut keeps a share R of the tokens and the grid,
            its second a share R^2 of those: R is the smallest for which the second keeps `tokens`. Ties to the lower
            index.
Raises      MethodError for layers that are not two, and a first count below the grid's or below `tokens`.
"""

from dataclasses import dataclass
from itertools import count
from typing import ClassVar

import torch

from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.schedule import dropping, layers_at
from tokcarve.passes.stage import Carry, Frozen, Method, MethodFacts, Outcome, Rule, Signals, Stage

__all__ = ["Feather", "first_count"]

PUBLISHED = (7, 15)
ABOVE = 2.0  # added to a token of the grid: more than any share of attention


def first_count(total: int, grid: int, tokens: int) -> int:
    """Tokens left by a first cut that keeps a share of `total` beside the grid, where that share squared of what it
    leaves is `tokens`."""
    above = next(above for above in count() if (grid + above) * (above + 1) ** 2 > tokens * total**2)
    return min(grid + above, total)


def _scoring(marks: list[float]) -> Rule:
    def rule(signals: Signals, carry: Carry) -> Outcome:
        share = torch.softmax(signals["last_logits_unrotated"], dim=2).mean(dim=1)
        return {"score": share + torch.tensor(marks, device=share.device) if marks else share}

    return rule


@dataclass(frozen=True, kw_only=True)
class Feather(Method):
    """layers: two, dropped behind these, 0-based (None: the published ones, scaled to the model's depth).

    stride: of the grid. first: tokens left by the first cut, grid included (None: as in the header).
    """

    layers: tuple[int, ...] | None = None
    stride: int = 3
    first: int | None = None

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="FEATHER",
        stage="in the language model",
        text_aware=True,
        reads=("last_logits_unrotated",),
        count="exact",
        cost="a key projection without RoPE, and one row of logits, at two layers",
        source="arXiv:2412.13180",
        licence="MIT",
    )

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """A cut behind each of two layers; one that would drop nothing is left out."""
        total = geometry.total
        if tokens == total:
            return ()
        sites = layers_at(geometry, self.layers, PUBLISHED)
        if len(sites) != len(PUBLISHED):
            raise MethodError(f"feather drops behind two layers, and {len(sites)} were named; name two, or none")
        rows, columns = (range(side) for side in geometry.vision.grid)
        marks = [ABOVE if r % self.stride == c % self.stride == 0 else 0.0 for r in rows for c in columns]
        grid = sum(mark > 0 for mark in marks)
        first = first_count(total, grid, tokens) if self.first is None else self.first
        if not max(grid, tokens) <= first <= total:
            raise MethodError(
                f"first={first} of feather: its first cut keeps a grid of {grid} and leaves {tokens} of {total} tokens "
                f"for the second to choose; choose {max(grid, tokens)}..{total}"
            )
        return tuple(
            Stage(
                site=site,
                reads=("last_logits_unrotated",),
                rule=_scoring(marks if site == sites[0] else []),
                how="choose",
                keep=keep,
            )
            for site, keep in dropping(total, zip(sites, (first, tokens), strict=True))
        )
