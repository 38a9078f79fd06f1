"""FastV: behind an early layer, keep the visual tokens that the last word of the prompt attends to most.

Source      arXiv:2403.06764, section 4; the form that drops once, at prefill.
Reads       last_attention [batch, heads, n] of language layer `layer` - 1.
Gives       score [batch, n]: attention probability from the last prompt row, mean over heads; higher means keep.
Cost        one attention row.
Differs     ties to the lower index.
Raises      MethodError for a layer that the language model does not have.
"""

from dataclasses import dataclass
from typing import ClassVar

from tokcarve.passes.geometry import Geometry
from tokcarve.passes.schedule import after_layer
from tokcarve.passes.stage import Carry, Frozen, Method, MethodFacts, Outcome, Signals, Stage

__all__ = ["FastV"]


def _attended(signals: Signals, carry: Carry) -> Outcome:
    return {"score": signals["last_attention"].mean(dim=1)}


@dataclass(frozen=True, kw_only=True)
class FastV(Method):
    """layer: how many language layers see all tokens."""

    layer: int = 2

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="FastV",
        stage="in the language model",
        text_aware=True,
        reads=("last_attention",),
        count="exact",
        cost="one attention row",
        source="arXiv:2403.06764",
        licence="none stated",
    )

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """One cut behind layer `layer` - 1."""
        if tokens == geometry.total:
            return ()
        site = after_layer(geometry, self.layer - 1)
        return (Stage(site=site, reads=("last_attention",), rule=_attended, how="choose", keep=tokens),)
