"""FlowCut: prune while the vision tower runs, by the information that flows to [CLS].

Source      arXiv:2505.19536 (NeurIPS 2025), section 3 and A.5; code TungChintao/FlowCut @ a2ecd247, CLIP path.
Reads       cls_attention [batch, heads, 1+n], values [batch, heads, 1+n, head_dim] of every layer before the last used.
Gives       score [batch, n] >= 0, dimensionless: (attention share + value-similarity share) x L1 norm of the
            head-mean value, averaged over layers with weight `ema`; higher means keep.
Cost        one query row, one row of value products and a norm per layer; `static` shortens the tower itself.
Differs     static (default): per-layer counts are frozen by calibration, or follow from `assumed_entropy`.
            exact: the reference's own counts, per image where the reference takes the maximum over a batch;
            saves no tower time. single: scored on every layer, cut once. Scores in float32; 0 ln 0 = 0; ties to the
            lower index.
Raises      MethodError for a tower without [CLS] or with fewer than two used layers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.stage import Carry, Frozen, Method, MethodFacts, Outcome, Signals, Stage

__all__ = ["FlowCut", "drop_count", "entropy_ratio", "shares"]

READS = ("cls_attention", "values")
TINY = torch.finfo(torch.float32).tiny


def shares(
    attention: Float[Tensor, "batch heads rows"],
    values: Float[Tensor, "batch heads rows dim"],
    alive: Bool[Tensor, "batch tokens"] | None = None,
) -> tuple[Float[Tensor, "batch tokens"], Float[Tensor, "batch tokens"]]:
    """Attention share of every patch (sums to 1) and its score; dead patches get 0."""
    similar = (values[:, :, :1] @ values.transpose(-1, -2)).squeeze(2)
    if alive is not None:
        everyone = torch.cat([torch.ones_like(alive[:, :1]), alive], dim=1)
        similar = torch.where(everyone[:, None], similar, torch.finfo(torch.float32).min)
    similar = torch.softmax(similar, dim=-1).mean(dim=1)[:, 1:]
    seen = attention.mean(dim=1)[:, 1:]
    # [CLS] may keep all of its attention to itself
    seen = seen / seen.sum(dim=1, keepdim=True).clamp_min(TINY)
    similar = similar / similar.sum(dim=1, keepdim=True).clamp_min(TINY)
    strength = values.mean(dim=1).abs().sum(dim=-1)[:, 1:]
    return seen, (seen + similar) * strength


def entropy_ratio(seen: Float[Tensor, "batch tokens"], count: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """Entropy of the attention shares over its maximum ln(count), both in nats; 0 for one token."""
    nats = -(seen * torch.log(seen.clamp_min(TINY))).sum(dim=1)
    return nats / torch.log(count).clamp_min(TINY)


def drop_count(count: Tensor, tokens: int, remaining: int, ratio: Tensor) -> Tensor:
    """How many of `count` tokens go, rounded half to even; `remaining` layers are left before the last cut."""
    return torch.round((count - tokens) / math.sqrt(remaining) * (1 - ratio**2))


@dataclass(frozen=True, kw_only=True)
class FlowCut(Method):
    """form: see the header. ema: weight of the past. interval: layers between cuts.

    assumed_entropy: the entropy ratio that fixes the static counts when nothing was calibrated.
    """

    form: Literal["static", "exact", "single"] = "static"
    ema: float = 0.5
    interval: int = 2
    assumed_entropy: float = 0.9

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="FlowCut",
        stage="inside the vision tower",
        text_aware=False,
        reads=READS,
        count="exact; static form: per-layer counts calibrated",
        cost="one attention row and one value row per layer",
        source="arXiv:2505.19536",
        licence="Apache-2.0",
    )

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """Score every layer but the last used one; cut at every `interval`-th, counted back from the last cut."""
        last = geometry.vision.layers_used - 2
        if last < 0:
            raise MethodError("flowcut cuts before the last used vision layer, and this tower uses only one")
        if tokens == geometry.total:
            return ()
        if self.form == "static":
            return self._static(geometry, tokens, frozen.counts if frozen else self.assumed(geometry, tokens))
        cuts = [i for i in range(last + 1) if (last - i) % self.interval == 0] if self.form == "exact" else [last]
        planned = []
        for i in range(last + 1):
            how: Literal["choose", "mask", "observe"] = "choose" if i == last else "mask" if i in cuts else "observe"
            keep = tokens if i == last else geometry.total
            planned.append(self._stage(i, how, keep, tokens, last - i))
        return tuple(planned)

    def _static(self, geometry: Geometry, tokens: int, counts: Mapping[str, int]) -> tuple[Stage, ...]:
        last = geometry.vision.layers_used - 2
        planned, alive = [], geometry.total
        for i in range(last + 1):
            keep = tokens if i == last else min(alive, counts.get(f"vision.layers.{i}", alive))
            planned.append(self._stage(i, "choose" if keep < alive else "observe", keep, tokens, last - i))
            alive = keep
            if alive == tokens:
                break
        return tuple(planned)

    def _stage(self, i: int, how: Literal["choose", "mask", "observe"], keep: int, tokens: int, left: int) -> Stage:
        def rule(signals: Signals, carry: Carry) -> Outcome:
            return self.rule(signals, carry, tokens, left if how == "mask" else 0)

        return Stage(site=f"vision.layers.{i}", reads=READS, rule=rule, how=how, keep=keep, carries=("ema",))

    def rule(self, signals: Signals, carry: Carry, tokens: int, remaining: int) -> Outcome:
        """The running score, and with `remaining` > 0 also how many tokens each image keeps here."""
        alive = signals.get("alive")
        seen, score = shares(signals["cls_attention"], signals["values"], alive)
        if "ema" in carry:
            score = self.ema * carry["ema"] + (1 - self.ema) * score
        if not remaining:
            return {"score": score, "ema": score}
        count = alive.sum(dim=1) if alive is not None else torch.full_like(seen[:, 0], seen.shape[1], dtype=torch.long)
        ratio = entropy_ratio(seen, count.float())
        kept = (count - drop_count(count.float(), tokens, remaining, ratio).long()).clamp_min(tokens)
        return {"score": score, "ema": score, "count": torch.minimum(kept, count)}

    def assumed(self, geometry: Geometry, tokens: int) -> dict[str, int]:
        """Counts per cut when every layer had the entropy ratio `assumed_entropy`."""
        last, alive, counts = geometry.vision.layers_used - 2, geometry.total, {}
        for i in range(last):
            if (last - i) % self.interval == 0:
                gone = (alive - tokens) / math.sqrt(last - i) * (1 - self.assumed_entropy**2)
                alive = max(alive - round(gone), tokens)
                counts[f"vision.layers.{i}"] = alive
        return counts

    def dynamic(self) -> "FlowCut | None":
        """The exact form, whose counts per image the static form freezes."""
        return replace(self, form="exact") if self.form == "static" else None
