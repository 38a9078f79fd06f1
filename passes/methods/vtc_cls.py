"""VTC-CLS: keep the patches that [CLS] attends to, summed over the last vision layers.

Source      arXiv:2412.05819; code THU-MIG/VTC-CLS @ e41ac9b4.
Reads       cls_attention [batch, heads, 1+n] of the last `layers` used vision layers.
Gives       score [batch, n] in [0, layers], dimensionless: head-mean attention summed over layers; higher means keep.
Cost        one query row per layer read.
Differs     batches of any size; float32 sums; ties to the lower index. layers = 3 is the paper's, 7 the scripts'.
Raises      MethodError for a tower without [CLS], or `layers` outside 1..used layers.
"""

from dataclasses import dataclass
from typing import ClassVar

from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.stage import Carry, Frozen, Method, MethodFacts, Outcome, Signals, Stage

__all__ = ["VtcCls", "summed"]


def summed(signals: Signals, carry: Carry) -> Outcome:
    """Head-mean attention of [CLS] to every patch, added to what earlier layers gave."""
    score = signals["cls_attention"].mean(dim=1)[:, 1:]
    if "score" in carry:
        score = carry["score"] + score
    return {"score": score}


@dataclass(frozen=True, kw_only=True)
class VtcCls(Method):
    """layers: how many of the last used vision layers are summed."""

    layers: int = 3

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="VTC-CLS",
        stage="after the last used vision layer",
        text_aware=False,
        reads=("cls_attention",),
        count="exact",
        cost="one attention row in each of the last layers",
        source="arXiv:2412.05819",
        licence="Apache-2.0",
    )

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """Sum over the last layers, one cut before the connector."""
        used = geometry.vision.layers_used
        if not 1 <= self.layers <= used:
            raise MethodError(
                f"layers={self.layers} of vtc_cls does not fit the {used} vision layers in use; choose 1..{used}"
            )
        if tokens == geometry.total:
            return ()
        return tuple(
            Stage(
                site=f"vision.layers.{i}",
                reads=("cls_attention",),
                rule=summed,
                how="choose" if i == used - 1 else "observe",
                keep=tokens if i == used - 1 else geometry.total,
                carries=("score",),
            )
            for i in range(used - self.layers, used)
        )
