"""Turbo: ToMe whose tokens are the safer from merging the more [CLS] attends to them.

Source      arXiv:2407.11717 (ECCV 2024), section 3; code at commit 1e7e108 (no licence).
Reads       keys [batch, heads, rows, head_dim] and cls_attention [batch, heads, 1+n] of every used vision layer.
Gives       weights [batch, keep, r], one-hot over size. Merged first is what is most alike to another token, less
            alpha * scale * its head-mean attention from [CLS], dimensionless.
Cost        that of ToMe and one attention row per layer; the tower itself gets shorter.
Differs     scale is 30 in the paper's code, 100 in its later LLaVA port; the factor that falls with depth is 1 in every
            published script and left out. Everything else as in tome.py.
Raises      MethodError for a tower without [CLS], or a count below what halving in every layer reaches.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from tokcarve.passes.bipartite import Order, merging_stages, removals
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.stage import Frozen, Method, MethodFacts, Signals, Stage

__all__ = ["Turbo"]


@dataclass(frozen=True, kw_only=True)
class Turbo(Method):
    """alpha, scale: weight of the attention from [CLS]; 0 is ToMe. proportional, order: as in ToMe."""

    alpha: float = 5.0
    scale: float = 30.0
    proportional: bool = True
    order: Order = "raster"

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="Turbo",
        stage="inside every vision layer",
        text_aware=False,
        reads=("keys", "cls_attention"),
        count="exact, by halves",
        cost="one key product, one attention row and one merge per layer",
        source="arXiv:2407.11717",
        licence="none stated",
    )

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """A merge in every used layer."""
        if tokens == geometry.total:
            return ()
        plan = removals(geometry.total, tokens, geometry.vision.layers_used, self.facts.title)
        return merging_stages(geometry, plan, self.facts.reads, self.worth, self.order, self.proportional)

    def worth(self, signals: Signals) -> Tensor:
        """What keeps a token that may go from going: [batch, a], for every second patch behind [CLS]."""
        return self.alpha * self.scale * signals["cls_attention"].mean(dim=1)[:, 2::2]
