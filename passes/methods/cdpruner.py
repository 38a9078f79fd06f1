"""CDPruner: the tokens that span the largest volume, each as long as it is relevant to the question.

Source      arXiv:2506.10967 (NeurIPS 2025); code Theia-4869/CDPruner @ 9541616.
Reads       tokens [batch, n, hidden] behind the connector and text [batch, hidden], the question.
Gives       score [batch, n], dimensionless: relevance (about 0 to 1), and 2 more for the picked tokens.
Cost        one [n, hidden] x [hidden, n] product; for the t-th token kept, t products of n numbers.
Differs     LLaVA checkpoints have no text tower: relevance is the cosine of a projected token with the mean input
            embedding of the question, as the paper has it for such models, scaled over the image, not over the batch.
            A token within one degree of the span of those before adds nothing; where only such are left, the rest is
            taken by falling relevance, and the reference gives too few. theta: weight of relevance by the formula that
            its code has switched off, times a constant that changes no choice; None takes relevance as it is.
Raises      MethodError for a theta outside [0, 1).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokcarve.passes.choose import one_hot, unit
from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.greedy import SPENT, volume
from tokcarve.passes.stage import Carry, Frozen, Method, MethodFacts, Outcome, Signals, Stage

__all__ = ["CDPruner", "keeping", "relevance"]

NOTHING = 1e-6


def relevance(cosine: Float[Tensor, "batch n"], theta: float | None = None) -> Float[Tensor, "batch n"]:
    """Token-to-text cosines, spread over 0 to 1 within each image; equal cosines give 1."""
    low, high = cosine.amin(dim=1, keepdim=True), cosine.amax(dim=1, keepdim=True)
    spread = (cosine - low + NOTHING) / (high - low).clamp_min(NOTHING)
    if theta is None:
        return spread
    return torch.exp(theta / (2 * (1 - theta)) * (spread - spread.amax(dim=1, keepdim=True))).clamp_min(NOTHING)


def keeping(
    relevant: Float[Tensor, "batch n"], picked: Int[Tensor, "batch k"], fresh: Float[Tensor, "batch k"]
) -> Float[Tensor, "batch n"]:
    """The score: relevance, and 2 more where a pick brought more than rounding does."""
    real = (fresh > SPENT).float().unsqueeze(2)
    return relevant + 2 * (one_hot(picked, relevant.shape[1]) * real).sum(dim=1)


@dataclass(frozen=True, kw_only=True)
class CDPruner(Method):
    """theta: weight of relevance against diversity, 0 (none) to below 1; None: relevance as it is."""

    theta: float | None = None

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="CDPruner",
        stage="after the connector",
        text_aware=True,
        reads=("tokens", "text"),
        count="exact",
        cost="one product of all tokens with one another, and a growing loop per token kept",
        source="arXiv:2506.10967",
        licence="Apache-2.0",
    )

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """One cut behind the connector."""
        if self.theta is not None and not 0 <= self.theta < 1:
            raise MethodError(f"theta={self.theta} of cdpruner is no weight; choose 0 to below 1, or leave it out")
        if tokens == geometry.total:
            return ()

        def rule(signals: Signals, carry: Carry) -> Outcome:
            units = unit(signals["tokens"])
            relevant = relevance((units @ unit(signals["text"]).unsqueeze(2)).squeeze(2), theta=self.theta)
            return {"score": keeping(relevant, *volume(units, relevant, tokens))}

        return (Stage(site="connector", reads=("tokens", "text"), rule=rule, how="choose", keep=tokens),)
