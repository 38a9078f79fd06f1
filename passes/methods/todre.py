"""ToDRE: from the patch [CLS] sees most, add the token least alike to all there are; late layers see text alone.

Source      arXiv:2505.18757 v2, sections of both stages; no code was published.
Reads       cls_attention [batch, heads, 1+n] of the last used vision layer, tokens [batch, n, hidden] behind the
            connector.
Gives       score [batch, n]: 1 for the picked tokens, 0 for the rest. First is the patch with the most head-mean
            attention from [CLS], then always the token with the smallest sum of cosines to the picked ones.
Cost        one attention row and one [n, hidden] x [hidden, n] product, then a few operations on n numbers per token
            kept. To calibrate, the text's attention in every layer.
Differs     the pivot is read from the last layer in use, not from the tower's last, which need not run. With `exit` all
            visual tokens leave behind seven eighths of the language layers, always: the paper drops them there if text
            attends to them with less than 0.1, which would leave the shapes open. The count is that before. From
            samples: the layer behind which a sample lets go is the first from which on text, mean over its rows and the
            heads, attends to what is left of the image with less than `threshold`. Ties to the lower index.
Raises      MethodError for a tower without [CLS], and with `exit` for a language model of one layer.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from tokcarve.passes.choose import best, one_hot
from tokcarve.passes.decide import earliest, least_and_most, typical
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.greedy import apart, spread
from tokcarve.passes.schedule import after_layer
from tokcarve.passes.stage import Carry, Decision, Frozen, Look, Method, MethodFacts, Outcome, Signals, Stage

__all__ = ["ToDRE"]


def _seen(signals: Signals, carry: Carry) -> Outcome:
    return {"seen": signals["cls_attention"].mean(dim=1)[:, 1:]}


@dataclass(frozen=True, kw_only=True)
class ToDRE(Method):
    """exit, threshold: see the header. layer: the last that sees visual tokens, 0-based; None for seven eighths of the
    depth."""

    exit: bool = True
    layer: int | None = None
    threshold: float = 0.1

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="ToDRE",
        stage="after the connector, and late in the language model",
        text_aware=False,
        reads=("cls_attention", "tokens"),
        count="exact, until all leave",
        cost="one product of all tokens with one another, and a short loop per token kept",
        source="arXiv:2505.18757",
        licence="no code",
    )

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """The pivot is read at the last used vision layer, the cut is behind the connector, the exit late."""
        if tokens == geometry.total:
            return ()

        def rule(signals: Signals, carry: Carry) -> Outcome:
            far = apart(signals["tokens"])
            picked = spread(far, best(carry["seen"]), tokens, together=torch.add)
            return {"score": one_hot(picked, far.shape[1]).sum(dim=1)}

        planned = [
            Stage(
                site=f"vision.layers.{geometry.vision.layers_used - 1}",
                reads=("cls_attention",),
                rule=_seen,
                how="observe",
                keep=geometry.total,
                carries=("seen",),
            ),
            Stage(site="connector", reads=("tokens",), rule=rule, how="choose", keep=tokens),
        ]
        if self.exit:
            # layers counted down, so that one is left without visual tokens
            layer = 7 * geometry.text.layers // 8 - 1 if self.layer is None else self.layer
            planned.append(Stage(site=after_layer(geometry, layer), how="exit", keep=0))
        return tuple(planned)

    def decides(self, geometry: Geometry, tokens: int, quantile: float | None = None) -> Decision | None:
        """The layer of the exit, unless it was named."""
        if not self.exit or self.layer is not None or tokens == geometry.total:
            return None
        return _Exit(self, geometry, tokens, quantile)


def _looked(layer: int, tokens: int) -> Stage:
    """Gives how much of its attention, of 1, text has for the image in one layer."""

    def rule(signals: Signals, carry: Carry) -> Outcome:
        mean = signals["text_attention"].mean(dim=1).sum(dim=(1, 2))
        return {f"attended{layer}": mean / signals["asked"].sum(dim=1).clamp_min(1)}

    return Stage(
        site=f"language.layers.{layer}",
        reads=("text_attention", "asked"),
        rule=rule,
        how="observe",
        keep=tokens,
        gives=(f"attended{layer}",),
    )


@dataclass(frozen=True)
class _Exit(Decision):
    """Looks at every layer of the language model behind which something follows."""

    method: ToDRE
    geometry: Geometry
    tokens: int
    quantile: float | None
    each: ClassVar[bool] = True

    def stages(self) -> tuple[Stage, ...]:
        """The cut, and behind it no exit."""
        cut = replace(self.method, exit=False).stages(self.geometry, self.tokens, None)
        layers = range(self.geometry.text.layers - 1)
        return (*cut, *(_looked(layer, self.tokens) for layer in layers))

    def measure(self, given: Mapping[str, Tensor]) -> dict[str, Any]:
        """What text attends to, by layer."""
        return {"attended": [float(given[f"attended{i}"]) for i in range(self.geometry.text.layers - 1)]}

    def settle(self, looks: Sequence[Look]) -> tuple[Method, dict[str, list[int | float]]]:
        """Rounded to the later layer; no exit where the last layer is still needed."""
        threshold = self.method.threshold
        exits = [earliest([one < threshold for one in look.seen["attended"]]) for look in looks]
        layer = math.ceil(typical(exits, self.quantile))
        left = layer < self.geometry.text.layers - 1
        return replace(self.method, layer=layer if left else None, exit=left), {"layer": least_and_most(exits)}
