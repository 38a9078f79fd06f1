"""PyramidDrop: several times in the language model, keep what the last word of the prompt is about to attend to.

Source      arXiv:2410.17247 (CVPR 2025), section 3; code Cooperx521/PyramidDrop @ 6444f30.
Reads       next_last_attention [batch, heads, n] of the layer behind each cut.
Gives       score [batch, n]: attention probability from the last prompt row, mean over heads; higher means keep.
Cost        one attention row of one more layer per cut.
Differs     ties to the lower index. The published cuts halve behind layers 7, 15 and 23 of 32, which leaves 72 of 576
            tokens; without `ratio` the count falls by one ratio to the tokens asked for, which for 72 is the same.
            A cut that would drop nothing is left out.
Raises      MethodError for layers that do not rise, or that the language model does not have.
"""

from dataclasses import dataclass
from typing import ClassVar

from tokcarve.passes.geometry import Geometry
from tokcarve.passes.schedule import dropping, geometric, layers_at
from tokcarve.passes.stage import Carry, Frozen, Method, MethodFacts, Outcome, Signals, Stage

__all__ = ["PyramidDrop"]

PUBLISHED = (7, 15, 23)


def _attended(signals: Signals, carry: Carry) -> Outcome:
    return {"score": signals["next_last_attention"].mean(dim=1)}


@dataclass(frozen=True, kw_only=True)
class PyramidDrop(Method):
    """layers: dropped behind these, 0-based (None: the published ones, scaled to the model's depth).

    ratio: what every cut but the last leaves of the tokens before it (None: the ratio that reaches the tokens asked
    for); the last leaves exactly those.
    """

    layers: tuple[int, ...] | None = None
    ratio: float | None = None

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="PyramidDrop",
        stage="in the language model",
        text_aware=True,
        reads=("next_last_attention",),
        count="exact",
        cost="one attention row of one more layer per cut",
        source="arXiv:2410.17247",
        licence="MIT",
    )

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """A cut behind each of the layers, the counts falling to `tokens`."""
        if tokens == geometry.total:
            return ()
        sites = layers_at(geometry, self.layers, PUBLISHED)
        counts = geometric(geometry.total, tokens, len(sites), self.ratio)
        reads = ("next_last_attention",)
        return tuple(
            Stage(site=site, reads=reads, rule=_attended, how="choose", keep=keep, positions="renumbered")
            for site, keep in dropping(geometry.total, zip(sites, counts, strict=True))
        )
