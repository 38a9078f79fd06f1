"""VisionZip: the patches that [CLS] attends to, [CLS] itself, and the rest folded into a few contextual tokens.

Source      arXiv:2412.04467 (CVPR 2025); code dvlab-research/VisionZip @ 3151f6d, LLaVA path.
Reads       cls_attention [batch, heads, 1+n] and keys [batch, heads, 1+n, head_dim] of the last used vision layer.
Gives       index -1 ([CLS]), dominant patches, anchors evenly spaced over the rest; weights [batch, keep, rest]: an
            anchor gains the mean of the patches whose head-mean keys are most alike (cosine) to its own.
Cost        one query row, a product of the keys with the anchors', and one of weights with the rest.
Differs     `contextual` is the share of the count, rounded half to even (0.15625: 30 of 192, 10 of 64); a share that
            rounds to 0 drops the rest. order: raster (default) sorts by patch, [CLS] first; published leaves the
            contextual tokens at the end. The sum of anchor and mean, about twice as long as a token, is the code's.
            Ties to the lower index.
Raises      MethodError for a tower without [CLS], or a share that leaves no room for [CLS].
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from tokcarve.passes.bipartite import Order
from tokcarve.passes.contextual import folding_stage
from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.stage import Frozen, Method, MethodFacts, Span, Stage

__all__ = ["VisionZip"]


@dataclass(frozen=True, kw_only=True)
class VisionZip(Method):
    """contextual: share of the count that is folded. order: see the header."""

    contextual: float = 0.15625
    order: Order = "raster"

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="VisionZip",
        stage="after the last used vision layer",
        text_aware=False,
        reads=("cls_attention", "keys"),
        count="exact, [CLS] included",
        cost="one attention row, two products over the dropped patches",
        source="arXiv:2412.04467",
        licence="Apache-2.0",
    )

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """One merge before the connector."""
        if tokens == geometry.total:
            return ()
        contextual = round(tokens * self.contextual)
        if not 0 <= contextual < tokens:
            raise MethodError(
                f"contextual={self.contextual} of visionzip folds {contextual} of {tokens} tokens and leaves none for "
                f"[CLS]; choose 0..{(tokens - 1) * 100 // tokens / 100}"
            )
        return (folding_stage(geometry, tokens, contextual, self.order),)

    def space(self, geometry: Geometry, tokens: int, *, exact: bool) -> Mapping[str, Span]:
        """contextual, up to half of the count."""
        return {"contextual": Span(low=0.0, high=0.5, start=self.contextual)} if tokens < geometry.total else {}
