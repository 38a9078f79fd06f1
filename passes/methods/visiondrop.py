"""VisionDrop: in the tower and three times in the language model, keep what vision attends to and fold the rest.

Source      arXiv:2506.22283 (AAAI 2026), section 3; code Ruixxxx/VisionDrop @ f7a9444.
Reads       cls_attention [batch, heads, 1+n] and keys [batch, heads, 1+n, head_dim] of the last used vision layer;
            next_visual_attention [batch, n, n] and next_visual_keys [batch, kv_heads, n, head_dim] behind `layers`.
Gives       index and weights as in visionzip.py, one token in eight folded. In the language model the score is the mean
            attention from the visual rows, keys count after RoPE, and folded tokens stand behind the others.
Cost        in the tower one query row, a product of the keys with the anchors' and one of weights with the rest; in the
            language model the visual rows of three attention maps besides.
Differs     the code publishes one budget: 48 tokens enter, then 35, 26 and 19 are left. Any other count keeps those
            proportions and is what the last cut leaves; a cut that would leave no fewer falls away. From samples:
            the counts before it are as over how many tokens (exp of the entropy) their scores spread in the unpruned
            model, and the mean over the layers stays what it is without samples. With scope
            "encoder" the count is what enters the language model, which drops nothing. The folded are ceil(count / 8),
            never all; a single token is [CLS] or the best. order as in visionzip.py, for the tower. Ties to the lower
            index.
Raises      MethodError for a tower without [CLS], and for layers that the language model does not have.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from tokcarve.passes.bipartite import Order
from tokcarve.passes.contextual import fold, folding_stage
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.schedule import geometric, layers_at, named
from tokcarve.passes.stage import Carry, Decision, Frozen, Method, MethodFacts, Outcome, Signals, Stage
from tokcarve.passes.widths import Widths

__all__ = ["VisionDrop"]

PUBLISHED = (7, 15, 23)
RATIO = 0.73362  # of counts one after the other: four that start at 1.5 T have the mean T


def _counts(total: int, tokens: int, cuts: int) -> tuple[int, ...]:
    """What enters the language model, and what is left behind each of its `cuts`."""
    mean = round(tokens / RATIO**cuts / 1.5)
    entering = round(1.5 * mean)
    return tuple(min(total, count) for count in (entering, *geometric(entering, tokens, cuts, RATIO)))


def _folded(tokens: int) -> int:
    return min(-(-tokens // 8), tokens - 1)


def _stage(site: str, tokens: int) -> Stage:
    """One merge in the language model, which leaves `tokens`."""

    def rule(signals: Signals, carry: Carry) -> Outcome:
        score = signals["next_visual_attention"].mean(dim=1)
        folded = _folded(tokens)
        return fold(score, signals["next_visual_keys"].mean(dim=1), tokens - folded, folded)

    reads = ("next_visual_attention", "next_visual_keys")
    return Stage(site=site, reads=reads, rule=rule, how="merge", keep=tokens, positions="renumbered")


@dataclass(frozen=True, kw_only=True)
class VisionDrop(Method):
    """scope, order: see the header. layers: dropped behind these layers of the language model, 0-based. counts: what
    enters it and what is left behind all of them but the last; None for the published proportions."""

    scope: Literal["all", "encoder"] = "all"
    order: Order = "raster"
    layers: tuple[int, ...] | None = None
    counts: tuple[int, ...] | None = None

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="VisionDrop",
        stage="after the last used vision layer, and in the language model",
        text_aware=False,
        reads=("cls_attention", "keys", "next_visual_attention", "next_visual_keys"),
        count="exact, [CLS] included",
        cost="one attention row and the visual rows of three maps, two products over the dropped tokens",
        source="arXiv:2506.22283",
        licence="Apache-2.0",
    )

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """One merge before the connector, and one behind every layer."""
        if tokens == geometry.total:
            return ()
        sites = self._sites(geometry)
        entering, *left = self._planned(geometry, tokens, len(sites))
        planned = (
            [folding_stage(geometry, entering, _folded(entering), self.order)] if entering < geometry.total else []
        )
        for site, before, after in zip(sites, (entering, *left), left, strict=False):
            if after < before:
                planned.append(_stage(site, after))
        return tuple(planned)

    def _sites(self, geometry: Geometry) -> tuple[str, ...]:
        return layers_at(geometry, self.layers, PUBLISHED) if self.scope == "all" else ()

    def _planned(self, geometry: Geometry, tokens: int, cuts: int) -> tuple[int, ...]:
        """What enters the language model, and what is left behind each of its `cuts`."""
        if self.counts is None or not cuts:
            return _counts(geometry.total, tokens, cuts) if cuts else (tokens,)
        # what enters is the count behind one cut more
        return named(self.counts, geometry.total, tokens, cuts + 1, "visiondrop")

    def decides(self, geometry: Geometry, tokens: int, quantile: float | None = None) -> Decision | None:
        """The counts before the last, unless they were named."""
        sites = self._sites(geometry)
        if not sites or self.counts is not None or tokens == geometry.total:
            return None
        usual = _counts(geometry.total, tokens, len(sites))
        return Widths(geometry, sites, usual, lambda counts: replace(self, counts=counts), quantile)
