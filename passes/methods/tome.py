"""ToMe: in every vision layer, merge the pairs of tokens whose keys are most alike.

Source      arXiv:2210.09461 (ICLR 2023); code facebookresearch/ToMe @ af95e4b (CC BY-NC).
Reads       keys [batch, heads, rows, head_dim] of every used vision layer; merges between its attention and its MLP.
Gives       weights [batch, keep, r], one-hot over size: every result is the mean of the patches it holds.
Cost        one half-by-half key product and an r-row product per layer; the tower itself gets shorter.
Differs     r per layer is the least that meets the count, one less in later layers where that is enough. order:
            raster (default) sorts the results by the patch they grew around, published leaves the reference's order,
            which ends with every second token. proportional: log(size) on later attention, as the paper advises
            without training. Without [CLS], tokens stay in rising order too. Ties to the lower index.
Raises      MethodError for a count below what halving in every layer reaches.
"""

from dataclasses import dataclass
from typing import ClassVar

from tokcarve.passes.bipartite import Order, merging_stages, removals
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.stage import Frozen, Method, MethodFacts, Stage

__all__ = ["ToMe"]


@dataclass(frozen=True, kw_only=True)
class ToMe(Method):
    """proportional: whether attention counts a merged token by its size. order: see the header."""

    proportional: bool = True
    order: Order = "raster"

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="ToMe",
        stage="inside every vision layer",
        text_aware=False,
        reads=("keys",),
        count="exact, by halves",
        cost="one key product and one merge per layer",
        source="arXiv:2210.09461",
        licence="CC BY-NC 4.0",
    )

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """A merge in every used layer."""
        if tokens == geometry.total:
            return ()
        plan = removals(geometry.total, tokens, geometry.vision.layers_used, self.facts.title)
        return merging_stages(geometry, plan, self.facts.reads, lambda signals: 0.0, self.order, self.proportional)
