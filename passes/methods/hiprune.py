"""HiPrune: what a middle vision layer attends to with its grid neighbours, then what the last layer attends to.

Source      arXiv:2508.00553, section 3; code Danielement321/HiPrune @ 6e83a124, LLaVA path.
Reads       attention [batch, rows, rows], head means, of the object layer and of the last used vision layer.
Gives       score [batch, n], dimensionless: attention that a patch receives in the last layer, mean over every row
            (with [CLS]), in [0, 1], plus 2 for anchors and buffers; higher means keep.
Cost        the whole attention map of two layers.
Differs     serves towers without [CLS]; the count is per image and exact. `object_layer` counts from 1 as in the code;
            None is the depth of CLIP-L's layer 9. Neighbours as in the code: one step along the raster or one row
            away, clamped to the image (the paper drops what lies outside). The paper's ++ form is left out.
            Ties to the lower index.
Raises      MethodError for an object layer that is not in use, or anchors whose neighbours may not fit the count.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tokcarve.passes.choose import one_hot, top_in_order
from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.stage import Carry, Frozen, Method, MethodFacts, Outcome, Signals, Span, Stage

__all__ = ["HiPrune", "anchor_count", "strict"]


def anchor_count(alpha: float, tokens: int) -> int:
    """Anchors such that they and their four neighbours take about a share `alpha` of `tokens`, half to even.

    MethodError where they may take more than there are.
    """
    anchors = round(tokens * alpha / 5)
    if alpha < 0 or 5 * anchors > tokens:
        raise MethodError(
            f"alpha={alpha} of hiprune asks for {anchors} anchors with four neighbours each among {tokens} tokens; "
            f"choose alpha in 0..{500 * (tokens // 5) // tokens / 100}"
        )
    return anchors


def strict(
    objects: Float[Tensor, "batch tokens"],
    registers: Float[Tensor, "batch tokens"],
    *,
    anchors: int,
    columns: int,
    bonus: float,
) -> Float[Tensor, "batch tokens"]:
    """`registers` plus `bonus`, which must exceed them, on the `anchors` best `objects` and their grid neighbours.

    The n best of the result are all anchors and neighbours and the best registers of the rest, n in all.
    """
    if not anchors:
        return registers
    total = objects.shape[1]
    found = top_in_order(objects, anchors)
    near = torch.cat([found + step for step in (0, -1, 1, -columns, columns)], dim=1).clamp(0, total - 1)
    return registers + bonus * one_hot(near, total).amax(dim=1)


@dataclass(frozen=True, kw_only=True)
class HiPrune(Method):
    """alpha: share of the count that goes to anchors and neighbours. object_layer: see the header."""

    alpha: float = 0.1
    object_layer: int | None = None

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="HiPrune",
        stage="after the last used vision layer",
        text_aware=False,
        reads=("attention",),
        count="exact",
        cost="the attention map of two layers",
        source="arXiv:2508.00553",
        licence="MIT",
    )

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """The object layer is observed and the register layer chooses; they may be one."""
        vision, used = geometry.vision, geometry.vision.layers_used
        middle = self.object_layer
        if middle is None:
            middle = min(max(round(9 / 24 * vision.layers), 1), used)
        if not 1 <= middle <= used:
            raise MethodError(
                f"object_layer={middle} of hiprune does not fit the {used} vision layers in use; choose 1..{used}"
            )
        if tokens == geometry.total:
            return ()
        anchors = anchor_count(self.alpha, tokens)

        def received(signals: Signals) -> Tensor:
            return signals["attention"].mean(dim=1)[:, vision.prefix :]

        def observe(signals: Signals, carry: Carry) -> Outcome:
            return {"object": received(signals)}

        def choose(signals: Signals, carry: Carry) -> Outcome:
            registers = received(signals)
            objects = carry.get("object", registers)
            return {"score": strict(objects, registers, anchors=anchors, columns=vision.grid[1], bonus=2.0)}

        site = "vision.layers.{}".format
        reads, total = self.facts.reads, geometry.total
        first = Stage(site=site(middle - 1), reads=reads, rule=observe, how="observe", keep=total, carries=("object",))
        last = Stage(site=site(used - 1), reads=reads, rule=choose, how="choose", keep=tokens)
        return (first, last) if middle < used else (last,)

    def space(self, geometry: Geometry, tokens: int, *, exact: bool) -> Mapping[str, Span]:
        """alpha, up to where anchors and neighbours are all that stays."""
        most = 5 * (tokens // 5) / tokens
        return {"alpha": Span(low=0.0, high=most, start=self.alpha)} if 5 <= tokens < geometry.total else {}
