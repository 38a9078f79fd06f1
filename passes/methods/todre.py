"""ToDRE: from the patch [CLS] sees most, add the token least alike to all there are; late layers see text alone.

Source      arXiv:2505.18757 v2, sections of both stages; no code was published.
Reads       cls_attention [batch, heads, 1+n] of the last used vision layer, tokens [batch, n, hidden] behind the
            connector.
Gives       score [batch, n]: 1 for the picked tokens, 0 for the rest. First is the patch with the most head-mean
            attention from [CLS], then always the token with the smallest sum of cosines to the picked ones.
Cost        one attention row and one [n, hidden] x [hidden, n] product, then a few operations on n numbers per token
            kept.
Differs     the pivot is read from the last layer in use, not from the tower's last, which need not run. With `exit` all
            visual tokens leave behind seven eighths of the language layers, always: the paper drops them there if text
            attends to them with less than 0.1, which would leave the shapes open. The count is that before. Ties to the
            lower index.
Raises      MethodError for a tower without [CLS], and with `exit` for a language model of one layer.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch

from tokcarve.passes.choose import best, one_hot
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.greedy import apart, spread
from tokcarve.passes.schedule import after_layer
from tokcarve.passes.stage import Carry, Frozen, Method, MethodFacts, Outcome, Signals, Stage

__all__ = ["ToDRE"]


def _seen(signals: Signals, carry: Carry) -> Outcome:
    return {"seen": signals["cls_attention"].mean(dim=1)[:, 1:]}


@dataclass(frozen=True, kw_only=True)
class ToDRE(Method):
    """exit: see the header."""

    exit: bool = True

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
            site = after_layer(geometry, 7 * geometry.text.layers // 8 - 1)
            planned.append(Stage(site=site, how="exit", keep=0))
        return tuple(planned)
