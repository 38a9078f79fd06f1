"""VisionDrop, encoder stage: what VisionZip does, with one token in eight folded.

Source      arXiv:2506.22283 (AAAI 2026), section 3; code Ruixxxx/VisionDrop @ f7a9444.
Reads       cls_attention [batch, heads, 1+n] and keys [batch, heads, 1+n, head_dim] of the last used vision layer.
Gives       index and weights as in visionzip.py.
Cost        one query row, a product of the keys with the anchors', and one of weights with the rest.
Differs     the cuts inside the language model are left out: a budget of 32 in the paper enters it with 48 tokens, which
            is the count to ask for here. The folded are ceil(count / 8), which gives the code's 6 of 48; a single
            token is [CLS]. order as in visionzip.py. Ties to the lower index.
Raises      MethodError for a tower without [CLS].
"""

from dataclasses import dataclass
from typing import ClassVar

from tokcarve.passes.bipartite import Order
from tokcarve.passes.contextual import folding_stage
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.stage import Frozen, Method, MethodFacts, Stage

__all__ = ["VisionDrop"]


@dataclass(frozen=True, kw_only=True)
class VisionDrop(Method):
    """order: see the header."""

    order: Order = "raster"

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="VisionDrop, encoder stage",
        stage="after the last used vision layer",
        text_aware=False,
        reads=("cls_attention", "keys"),
        count="exact, [CLS] included",
        cost="one attention row, two products over the dropped patches",
        source="arXiv:2506.22283",
        licence="Apache-2.0",
    )

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """One merge before the connector."""
        if tokens == geometry.total:
            return ()
        return (folding_stage(geometry, tokens, min(-(-tokens // 8), tokens - 1), self.order),)
