"""DyVTE, fixed exit: behind one layer of the language model all visual tokens leave at once.

Source      arXiv:2411.19628 (NeurIPS 2025), section 3; code DoubtedSteam/DyVTE.
Reads       nothing: the layer is a constant.
Gives       nothing is scored; all visual tokens are kept up to the layer, and none behind it.
Cost        none.
Differs     no router decides per prompt, which would leave the shapes open. Half of the depth by default, about where
            the paper's models let go.
Raises      MethodError for fewer tokens than all, and for a layer that the language model does not have.
"""

from dataclasses import dataclass
from typing import ClassVar

from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.schedule import after_layer
from tokcarve.passes.stage import Frozen, Method, MethodFacts, Stage

__all__ = ["DyVTE"]


@dataclass(frozen=True, kw_only=True)
class DyVTE(Method):
    """layer: the last that sees visual tokens, 0-based; None for half of the depth."""

    layer: int | None = None

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="DyVTE, fixed exit",
        stage="in the language model",
        text_aware=False,
        reads=(),
        count="all, until all leave",
        cost="none",
        source="arXiv:2411.19628",
        licence="none stated",
    )

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """The exit."""
        if tokens != geometry.total:
            raise MethodError(
                f"dyvte keeps all {geometry.total} visual tokens until they leave together, and {tokens} were asked "
                f"for; ask for {geometry.total} and set the layer with --param, or choose a method that keeps some"
            )
        layer = geometry.text.layers // 2 - 1 if self.layer is None else self.layer
        return (Stage(site=after_layer(geometry, layer), how="exit", keep=0),)
