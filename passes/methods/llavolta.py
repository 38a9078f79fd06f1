"""LLaVolta: behind an early layer of the language model, average runs of visual tokens.

Source      arXiv:2406.20092 (NeurIPS 2024), section 3; code Beckschen/LLaVolta, its average pooling.
Reads       states [batch, n, hidden] behind language layer `layer` - 1, of which only the batch counts.
Gives       weights [1, keep, n]: each result is the mean of a run of n / keep tokens in raster order. It stands for the
            token in the middle of the run, the earlier of two, and has the position of that token.
Cost        one constant matrix product.
Differs     the code averages positions too and cuts the fraction off; in half precision that loses places above 2048,
            here it is exact. Training with a pooling that weakens in stages is not part of this.
Raises      MethodError for a count that does not divide the tokens, and for a layer that the language model does not
            have.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from tokcarve.passes.choose import one_hot
from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.schedule import after_layer
from tokcarve.passes.stage import Carry, Frozen, Method, MethodFacts, Outcome, Signals, Stage

__all__ = ["LLaVolta"]


@dataclass(frozen=True, kw_only=True)
class LLaVolta(Method):
    """layer: how many language layers see all tokens."""

    layer: int = 2

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="LLaVolta pooling",
        stage="in the language model",
        text_aware=False,
        reads=("states",),
        count="exact, where it divides the tokens",
        cost="one constant matrix product",
        source="arXiv:2406.20092",
        licence="Apache-2.0",
    )

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """One merge behind layer `layer` - 1."""
        total = geometry.total
        if tokens == total:
            return ()
        if total % tokens:
            reached = ", ".join(str(count) for count in range(1, total) if total % count == 0)
            raise MethodError(
                f"llavolta averages runs of one length, and {total} visual tokens have no {tokens} of them; "
                f"choose one of {reached}"
            )
        run = total // tokens
        weights = one_hot(torch.arange(total) // run, tokens).T.unsqueeze(0) / run
        middle = torch.arange((run - 1) // 2, total, run).unsqueeze(0)

        def rule(signals: Signals, carry: Carry) -> Outcome:
            batch, device = signals["states"].shape[0], signals["states"].device
            return {"weights": weights.to(device), "index": middle.to(device).expand(batch, -1)}

        site = after_layer(geometry, self.layer - 1)
        return (Stage(site=site, reads=("states",), rule=rule, how="merge", keep=tokens),)
