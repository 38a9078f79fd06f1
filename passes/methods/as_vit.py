"""AS-ViT: three cuts inside the vision tower, by thresholds on what [CLS] attends to with heads that give much.

Source      arXiv:2209.13802 (IJCAI 2023); code Cydia2018/AS-ViT @ e57f4452, DeiT-S.
Reads       cls_attention and head_norms [batch, heads, 1+n] of every layer behind which it cuts; with `accumulate` of
            every layer from the third of twelve to the last cut.
Gives       score [batch, n] >= 0, dimensionless: attention of [CLS] to the token, heads weighted by the share of
            each in the norms of what they give the token; with `accumulate` summed over layers. Higher means keep.
Cost        one query row and a norm per layer read, and its attention of all rows to all once more; in an exported
            float32 graph that one is merged with the layer's own.
Differs     static (default): every cut keeps a count, as the code does for batches, by calibration or falling by one
            ratio. threshold: per image the tokens above a threshold stay, never fewer than were asked for; the last
            cut leaves exactly those. Thresholds are trained there; here their published start keeps its proportions,
            counts as for 196 tokens, and is scaled by one number: from samples, so that the tokens above the last
            threshold are those asked for in the mean; else 1. The published start is .001, .002, .003, and .004, .012,
            .020 for `accumulate`. Inferred: layers 3, 6 and 9 of 12 scale to those that are used. Scores in float32;
            ties to the lower index.
Raises      MethodError for a tower without [CLS], layers that it does not use, and a threshold too many or too few.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.scale import Scale
from tokcarve.passes.schedule import dropping, geometric, tower_layers_at
from tokcarve.passes.stage import Carry, Decision, Frozen, Method, MethodFacts, Outcome, Signals, Stage

__all__ = ["ASViT", "weighted"]

READS = ("cls_attention", "head_norms")
PUBLISHED, FIRST, DEPTH = (3, 6, 9), 2, 12
START, SUMMED = (0.001, 0.002, 0.003), (0.004, 0.012, 0.02)
PATCHES = 196  # for which thresholds were published; shares of attention fall as tokens grow in number


def weighted(
    attention: Float[Tensor, "batch heads rows"], norms: Float[Tensor, "batch heads rows"]
) -> Float[Tensor, "batch tokens"]:
    """Attention of [CLS] to every token, each head weighted by its share in the token's norms."""
    share = norms / norms.sum(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
    return (attention * share).sum(dim=1)[:, 1:]


@dataclass(frozen=True, kw_only=True)
class ASViT(Method):
    """form, accumulate: see the header. layers: cut behind these vision layers, 0-based (None: the published ones).
    thresholds: one per cut (None: the published start). scale: of all thresholds (None: by samples)."""

    form: Literal["static", "threshold"] = "static"
    layers: tuple[int, ...] | None = None
    accumulate: bool = False
    thresholds: tuple[float, ...] | None = None
    scale: float | None = None

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="AS-ViT",
        stage="inside the vision tower",
        text_aware=False,
        reads=READS,
        count="exact; static form: counts of the cuts before the last calibrated",
        cost="one attention row and one whole attention per cut",
        source="arXiv:2209.13802",
        licence="none stated",
    )

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """A cut behind every layer that has a threshold."""
        limits = self._limits(geometry)
        if tokens == geometry.total:
            return ()
        *inner, last = limits
        if self.form == "threshold":
            cuts = {site: self._stage(site, "mask", geometry.total, tokens, limits[site]) for site in inner}
            cuts[last] = self._stage(last, "choose", tokens, tokens, limits[last])
        else:
            planned = dict(zip(limits, geometric(geometry.total, tokens, len(limits)), strict=True))
            counts: Mapping[str, int] = planned if frozen is None else frozen.counts
            plan = [*((site, max(tokens, counts.get(site, geometry.total))) for site in inner), (last, tokens)]
            kept = dropping(geometry.total, plan)
            cuts = {site: self._stage(site, "choose", keep, tokens, limits[site]) for site, keep in kept}
        return self._accumulated(geometry, cuts) if self.accumulate else tuple(cuts.values())

    def _limits(self, geometry: Geometry) -> dict[str, float]:
        """What a token must exceed behind every site."""
        sites = tower_layers_at(geometry, self.layers, PUBLISHED, DEPTH)
        limits = self.thresholds if self.thresholds is not None else SUMMED if self.accumulate else START
        if len(limits) != len(sites):
            raise MethodError(
                f"as_vit has {len(limits)} thresholds and cuts behind {len(sites)} layers; give as many with --param"
            )
        by = (self.scale if self.scale is not None else 1.0) * PATCHES / geometry.total
        return {site: limit * by for site, limit in zip(sites, limits, strict=True)}

    def _accumulated(self, geometry: Geometry, cuts: dict[str, Stage]) -> tuple[Stage, ...]:
        """The cuts, and between them what hands the sum on; layers before the first that counts are not read."""
        ends = [int(site.rpartition(".")[2]) for site in cuts]
        (first,) = tower_layers_at(geometry, None, (FIRST,), DEPTH)
        found, left = list[Stage](), geometry.total
        for layer in range(min(int(first.rpartition(".")[2]), ends[0]), ends[-1] + 1):
            site = f"vision.layers.{layer}"
            one = cuts.get(site) or self._stage(site, "observe", left)
            found.append(replace(one, carries=("score",) if layer < ends[-1] else ()))
            left = found[-1].keep
        return tuple(found)

    def _stage(
        self, site: str, how: Literal["choose", "mask", "observe"], keep: int, tokens: int = 0, limit: float = 0.0
    ) -> Stage:
        def rule(signals: Signals, carry: Carry) -> Outcome:
            score = weighted(signals["cls_attention"], signals["head_norms"]) + carry.get("score", 0.0)
            if how == "observe" or self.form == "static":
                return {"score": score}
            above = score > limit
            passing = (above & signals["alive"] if "alive" in signals else above).sum(dim=1)
            count = {"count": passing.clamp_min(tokens)} if how == "mask" else {"passing": passing}
            return {"score": score, **count}

        return Stage(site=site, reads=READS, rule=rule, how=how, keep=keep)

    def dynamic(self) -> "ASViT | None":
        """The form with thresholds, whose counts per image the static form freezes."""
        return replace(self, form="threshold") if self.form == "static" else None

    def decides(self, geometry: Geometry, tokens: int, quantile: float | None = None) -> Decision | None:
        """The scale, unless it was named; the mean settles it, and a quantile the counts."""
        if self.scale is not None or tokens == geometry.total:
            return None
        per_image, last = replace(self, form="threshold"), list(self._limits(geometry))[-1]
        return Scale(
            last, tokens, lambda scale: replace(per_image, scale=scale), lambda scale: replace(self, scale=scale)
        )
