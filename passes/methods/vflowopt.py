"""VFlowOpt, stage 1: importance from the rows of attention sinks; what is pruned is recycled cell by cell.

Source      arXiv:2508.05211 (ICCV 2025), code sihany077/VFlowOpt @ 129eeef (CC BY-NC).
Reads       attention [batch, rows, rows] of the last used vision layer; with alpha also pixels [batch, 3, h, w].
Gives       importance [batch, n]: mean attention from the sinks (patches that receive over `threshold` times the mean)
            plus alpha times the softmax of each patch's grey-level entropy in bits; higher means keep. After the
            connector the pruned tokens of a cell of `cell` x `cell` patches become one, weighted by importance.
Cost        one attention map and one [keep, n] product.
Differs     the count is exact: one slot per cell comes out of the budget, and a cell without pruned tokens gives its
            slot to the next best token. No sink: the most attended patch is one. Entropy is the paper's, on 8-bit grey;
            negative importance weighs nothing. Defaults are the reference's at 25 %, where entropy is off.
Raises      MethodError for fewer tokens than cells.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tokcarve.passes.choose import LOWEST, best, one_hot, take, top_in_order, top_mask
from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.stage import Carry, Frozen, Method, MethodFacts, Outcome, Signals, Stage

__all__ = ["VFlowOpt", "entropy", "grey", "importance", "recycled"]

TINY = torch.finfo(torch.float32).tiny
SURE = 1e3  # above every importance


def importance(attention: Float[Tensor, "batch n n2"], threshold: float) -> Float[Tensor, "batch n"]:
    """Mean row of the sinks of an attention map between patches."""
    received = attention.mean(dim=1)
    sink = (received > threshold * received.mean(dim=1, keepdim=True)).float()
    found = sink.sum(dim=1, keepdim=True)
    sink = torch.where(found > 0, sink, one_hot(best(received), received.shape[1]))
    return (sink.unsqueeze(1) @ attention).squeeze(1) / found.clamp_min(1)


def entropy(grey: Float[Tensor, "batch n pixels"]) -> Float[Tensor, "batch n"]:
    """Entropy in bits of the 256 grey levels of each patch."""
    share = torch.stack([(grey == level).float().mean(dim=2) for level in range(256)], dim=2)
    return -(share * torch.log2(share + 1e-10)).sum(dim=2)


def recycled(score: Float[Tensor, "batch n"], cells: Float[Tensor, "n cells"], keep: int) -> Outcome:
    """The `keep` - cells best tokens, and of every cell one token that holds the rest of it."""
    low = ~top_mask(score, keep - cells.shape[1])
    inside = low.unsqueeze(1) & (cells.T > 0)
    heads = one_hot(best(torch.where(inside, score.unsqueeze(1), LOWEST)), score.shape[1])
    head = (heads * inside.any(dim=2, keepdim=True).float()).sum(dim=1) > 0
    index = top_in_order(torch.where(low & ~head, score, SURE), keep)
    picked = one_hot(index, score.shape[1]).sum(dim=1) > 0
    weight = torch.where(low & (head | ~picked), score.clamp_min(TINY), 0.0)
    holds = take(head.float(), index)
    mine = take(cells.expand(score.shape[0], -1, -1), index) * holds.unsqueeze(2)
    share = cells.T * weight.unsqueeze(1) / (weight @ cells).clamp_min(TINY).unsqueeze(2)
    return {"index": index, "weights": mine @ share, "own": 1 - holds}


@dataclass(frozen=True, kw_only=True)
class VFlowOpt(Method):
    """threshold, alpha: see the header. cell: side of a recycling cell in patches, not always a whole number."""

    threshold: float = 34.76
    alpha: float = 0.0
    cell: float = 15.581

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="VFlowOpt",
        stage="after the connector",
        text_aware=False,
        reads=("attention",),
        count="exact, one slot per cell",
        cost="one attention map and one merge",
        source="arXiv:2508.05211",
        licence="CC BY-NC 4.0",
    )

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """Importance behind the last used vision layer, the cut behind the connector."""
        if tokens == geometry.total:
            return ()
        cells = self.cells(geometry)
        if tokens < cells.shape[1]:
            raise MethodError(
                f"vflowopt with cell={self.cell} recycles into {cells.shape[1]} tokens, and {tokens} were asked for; "
                f"keep {cells.shape[1]} or more, or choose a larger cell"
            )

        def watch(signals: Signals, carry: Carry) -> Outcome:
            prefix = geometry.vision.prefix
            score = importance(signals["attention"][:, prefix:, prefix:], self.threshold)
            if self.alpha:
                score = score + self.alpha * torch.softmax(entropy(grey(signals["pixels"], geometry)), dim=1)
            return {"importance": score}

        def cut(signals: Signals, carry: Carry) -> Outcome:
            return recycled(carry["importance"], cells.to(carry["importance"].device), tokens)

        reads = ("attention", "pixels") if self.alpha else ("attention",)
        site = f"vision.layers.{geometry.vision.layers_used - 1}"
        return (
            Stage(site=site, reads=reads, rule=watch, how="observe", keep=geometry.total, carries=("importance",)),
            Stage(site="connector", rule=cut, how="merge", keep=tokens),
        )

    def cells(self, geometry: Geometry) -> Float[Tensor, "n cells"]:
        """1.0 where a patch lies in a cell."""
        rows, columns = geometry.vision.grid
        across = int((columns - 1) / self.cell) + 1
        of = [int(r / self.cell) * across + int(c / self.cell) for r in range(rows) for c in range(columns)]
        return one_hot(torch.tensor(of), max(of) + 1)


def grey(pixel_values: Float[Tensor, "batch 3 height width"], geometry: Geometry) -> Float[Tensor, "batch n pixels"]:
    """Grey levels 0..255 of each patch: the mean of the 8-bit channels, rounded."""
    vision, patch = geometry.vision, geometry.vision.patch_size
    mean, std = (torch.tensor(v, device=pixel_values.device).view(3, 1, 1) for v in (vision.mean, vision.std))
    levels = torch.round((pixel_values.float() * std + mean) * 255).clamp(0, 255)
    rows, columns = vision.grid
    patches = torch.round(levels.mean(dim=1)).view(-1, rows, patch, columns, patch).transpose(2, 3)
    return patches.reshape(-1, rows * columns, patch * patch)
