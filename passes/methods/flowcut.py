"""FlowCut: prune while the vision tower runs, by the information that flows to [CLS].

Source      arXiv:2505.19536 (NeurIPS 2025), section 3 and A.5; code TungChintao/FlowCut @ a2ecd247, CLIP path.
Reads       cls_attention [batch, heads, 1+n], values [batch, heads, 1+n, head_dim] of every layer before the last used;
            with `language_stage` also last_logits [batch, heads, n], visual_values [batch, kv_heads, n, head_dim] and
            last_value [batch, kv_heads, 1, head_dim] of language layer 1.
Gives       score [batch, n] >= 0, dimensionless: (attention share + value-similarity share) x L1 norm of the
            head-mean value, averaged over layers with weight `ema`; higher means keep. In the language model the same
            between the last word and the visual tokens.
Cost        one query row, one row of value products and a norm per layer; `static` shortens the tower itself.
Differs     static (default): per-layer counts are frozen by calibration, or follow from `assumed_entropy`.
            exact: the reference's own counts, per image where the reference takes the maximum over a batch;
            saves no tower time. single: scored on every layer, cut once. language_stage, which the code has for long
            sequences: twice the count leaves the tower, or all. Scores in float32; 0 ln 0 = 0; ties to the lower
            index.
Raises      MethodError for a tower without [CLS] or with fewer than two used layers, and with `language_stage` for a
            language model of fewer than three.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from tokcarve.passes.errors import MethodError
from tokcarve.passes.flow import drop_count, entropy_ratio, flows, shares
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.schedule import after_layer
from tokcarve.passes.stage import Carry, Frozen, Method, MethodFacts, Outcome, Signals, Stage

__all__ = ["FlowCut"]

READS = ("cls_attention", "values")
LATE = ("last_logits", "visual_values", "last_value")


def _asked(signals: Signals, carry: Carry) -> Outcome:
    return {"score": flows(signals["last_logits"], signals["visual_values"], signals["last_value"])}


@dataclass(frozen=True, kw_only=True)
class FlowCut(Method):
    """form: see the header. ema: weight of the past. interval: layers between cuts.

    assumed_entropy: the entropy ratio that fixes the static counts when nothing was calibrated. language_stage: cut
    again behind language layer 1, by what the last word attends to.
    """

    form: Literal["static", "exact", "single"] = "static"
    ema: float = 0.5
    interval: int = 2
    assumed_entropy: float = 0.9
    language_stage: bool = False

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
        if geometry.vision.layers_used < 2:
            raise MethodError("flowcut cuts before the last used vision layer, and this tower uses only one")
        if tokens == geometry.total:
            return ()
        if not self.language_stage:
            return self._encoder(geometry, tokens, frozen)
        entering = min(2 * tokens, geometry.total)
        first = self._encoder(geometry, entering, frozen) if entering < geometry.total else ()
        site = after_layer(geometry, 1)
        cut = Stage(site=site, reads=LATE, rule=_asked, how="choose", keep=tokens, positions="renumbered")
        return (*first, cut)

    def _encoder(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        last = geometry.vision.layers_used - 2
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

        # behind the last cut nothing asks for the average
        carries = () if keep == tokens else ("ema",)
        return Stage(site=f"vision.layers.{i}", reads=READS, rule=rule, how=how, keep=keep, carries=carries)

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
