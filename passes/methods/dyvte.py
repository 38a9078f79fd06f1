"""DyVTE, fixed exit: behind one layer of the language model all visual tokens leave at once.

Source      arXiv:2411.19628 (NeurIPS 2025), section 3; code DoubtedSteam/DyVTE.
Reads       nothing: the layer is a constant.
Gives       nothing is scored; all visual tokens are kept up to the layer, and none behind it.
Cost        none; to calibrate, one prefill per layer and sample.
Differs     no router decides per prompt, which would leave the shapes open. Half of the depth by default, about where
            the paper's models let go. From samples: the label that the paper trains its routers on, on what the full
            model answers. A sample lets go behind the first layer from which on every exit keeps the first tokens of
            that answer and costs less than 1.03 times its cross-entropy.
Raises      MethodError for fewer tokens than all, and for a layer that the language model does not have.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from tokcarve.passes.decide import earliest, least_and_most, typical
from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.schedule import after_layer
from tokcarve.passes.stage import Decision, Frozen, Look, Method, MethodFacts, Stage

__all__ = ["DyVTE", "may_exit"]

WORSE = 1.03


def may_exit(tried: Mapping[str, Any]) -> bool:
    """The paper's label of one exit: the same tokens, and hardly less sure of them."""
    return bool(tried["same"]) and tried["surprise"] < WORSE * tried["full_surprise"]


@dataclass(frozen=True, kw_only=True)
class DyVTE(Method):
    """layer: the last that sees visual tokens, 0-based; None for half of the depth."""

    layer: int | None = None

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="DyVTE, fixed exit",
        stage="in the language model",
        text_aware=False,
        reads=(),
        count="all, until all leave; the layer can be calibrated",
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

    def decides(self, geometry: Geometry, tokens: int, quantile: float | None = None) -> Decision | None:
        """The layer, unless it was named."""
        return _Exit(self, geometry.text.layers - 1, quantile) if self.layer is None else None


@dataclass(frozen=True)
class _Exit(Decision):
    """Tries an exit behind each of the first `layers`; the last stands for a sample that none of them suits."""

    method: DyVTE
    layers: int
    quantile: float | None
    each: ClassVar[bool] = True

    def tries(self, looks: Sequence[Look]) -> tuple[Method, ...]:
        """Every exit, at once."""
        return () if looks[0].tried else tuple(replace(self.method, layer=layer) for layer in range(self.layers))

    def settle(self, looks: Sequence[Look]) -> tuple[Method, dict[str, list[int | float]]]:
        """Rounded to the later layer."""
        exits = [min(earliest([may_exit(one) for one in look.tried[0]]), self.layers - 1) for look in looks]
        return replace(self.method, layer=math.ceil(typical(exits, self.quantile))), {"layer": least_and_most(exits)}
