"""DivPrune: the tokens that lie farthest from one another, picked one by one.

Source      arXiv:2503.02175 (CVPR 2025); code vbdi/divprune @ 799e2d9 (CC BY-NC).
Reads       tokens [batch, n, hidden] behind the connector.
Gives       score [batch, n]: 1 for the picked tokens, 0 for the rest. First is the token whose nearest neighbour is
            farthest by cosine, then always the one whose nearest picked token is farthest.
Cost        one [n, hidden] x [hidden, n] product, then a few operations on n numbers for every token kept.
Differs     float32; a token is picked once, even where only copies are left. Two tokens that are each other's nearest
            tie exactly for first place, and the lower index has it, as it has every tie.
Raises      nothing of its own.
"""

from dataclasses import dataclass
from typing import ClassVar

from tokcarve.passes.choose import one_hot
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.greedy import apart, loneliest, spread
from tokcarve.passes.stage import Carry, Frozen, Method, MethodFacts, Outcome, Signals, Stage

__all__ = ["DivPrune"]


@dataclass(frozen=True, kw_only=True)
class DivPrune(Method):
    """No hyper-parameters."""

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="DivPrune",
        stage="after the connector",
        text_aware=False,
        reads=("tokens",),
        count="exact",
        cost="one product of all tokens with one another, and a short loop per token kept",
        source="arXiv:2503.02175",
        licence="CC BY-NC 4.0",
    )

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """One cut behind the connector."""
        if tokens == geometry.total:
            return ()

        def rule(signals: Signals, carry: Carry) -> Outcome:
            far = apart(signals["tokens"])
            return {"score": one_hot(spread(far, loneliest(far), tokens), far.shape[1]).sum(dim=1)}

        return (Stage(site="connector", reads=("tokens",), rule=rule, how="choose", keep=tokens),)
