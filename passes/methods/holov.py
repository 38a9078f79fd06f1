"""HoloV: spread the count over horizontal bands by the attention they get, then keep the best of every band.

Source      arXiv:2510.02912 (NeurIPS 2025); code obananas/HoloV @ 1d2e65e, LLaVA path.
Reads       cls_attention [batch, heads, 1+n] of the last used vision layer; holistic also the projected tokens.
Gives       score [batch, n], dimensionless: head-mean attention of [CLS] (attn), or H = attention + alpha gamma v
            (holistic): v is the variance of a token's cosines to its band, gamma brings its mean to that of the
            attention; plus a constant for what a band's quota keeps; higher means keep.
Cost        one query row and [n, n] comparisons; holistic: also one product of the projected tokens with themselves.
Differs     alpha weighs v: 1 in the paper, 0.09 in the code, where it cancels from the quotas and ranks nothing; so
            attn (default) is the released code and holistic with alpha = 1 the paper. A quota beyond its band is
            filled up with the best tokens left (the code adds zero rows, the paper gives to weighty bands). Kept in
            raster order, not band by band. crops None: floor(1024 n / (576 count)), on 576 tokens the paper's
            1024 / count. No epsilons, no special case for bands of one token. Ties to the lower index.
Raises      MethodError for a tower without [CLS], or crops outside 1..n.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokcarve.passes.choose import one_hot, rank, unit
from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.stage import Carry, Frozen, Method, MethodFacts, Outcome, Signals, Stage

__all__ = ["HoloV", "bands", "holistic", "quotas", "spread"]

TINY = torch.finfo(torch.float32).tiny


def bands(total: int, crops: int) -> list[int]:
    """The band 0..crops-1 of each of `total` tokens; the first total % crops bands are one token longer."""
    return [band for band in range(crops) for _ in range(total // crops + (band < total % crops))]


def quotas(
    attention: Float[Tensor, "batch tokens"], band: Int[Tensor, " tokens"], crops: int, keep: int
) -> Float[Tensor, "batch {crops}"]:
    """How many of `keep` each band is due: by mean attention, rounded down; what is left goes to the largest means."""
    member = one_hot(band, crops)
    mean = (attention.unsqueeze(2) * member).sum(dim=1) / member.sum(dim=0)
    share = mean / mean.sum(dim=1, keepdim=True).clamp_min(TINY)
    quota = torch.floor(share * keep)
    return quota + (rank(share) < keep - quota.sum(dim=1, keepdim=True)).float()


def spread(
    attention: Float[Tensor, "batch tokens"],
    score: Float[Tensor, "batch tokens"],
    band: Int[Tensor, " tokens"],
    *,
    crops: int,
    keep: int,
    bonus: float,
) -> Float[Tensor, "batch tokens"]:
    """`score` plus `bonus`, which must exceed its range, on the best tokens of each band as far as its quota goes."""
    due = (quotas(attention, band, crops, keep).unsqueeze(1) * one_hot(band, crops)).sum(dim=2)
    return score + bonus * (rank(score, band == band.unsqueeze(1)) < due).float()


def holistic(
    attention: Float[Tensor, "batch tokens"],
    tokens: Float[Tensor, "batch tokens hidden"],
    band: Int[Tensor, " tokens"],
    alpha: float,
) -> Float[Tensor, "batch tokens"]:
    """H of the header, in 0..1+alpha."""
    same, order = band == band.unsqueeze(1), torch.arange(band.shape[0], device=band.device)
    others = (same.sum(dim=1) - 1).clamp_min(1)
    units = unit(tokens)
    # a token's cosine to itself counts as 0, as in the code
    alike = (units @ units.transpose(1, 2)) * (same & (order != order.unsqueeze(1)))
    away = (alike - alike.sum(dim=2, keepdim=True) / others.unsqueeze(1)) * same
    variance = away.square().sum(dim=2) / others
    looked, varied = ((value.unsqueeze(1) * same).sum(dim=2) for value in (attention, variance))
    return attention + alpha * (looked / varied.clamp_min(TINY)) * variance


@dataclass(frozen=True, kw_only=True)
class HoloV(Method):
    """rank_by, crops (the number of bands), alpha: see the header."""

    rank_by: Literal["attn", "holistic"] = "attn"
    crops: int | None = None
    alpha: float = 0.09

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="HoloV",
        stage="after the last used vision layer; holistic: after the connector",
        text_aware=False,
        reads=("cls_attention",),
        count="exact",
        cost="one attention row and comparisons of all tokens",
        source="arXiv:2510.02912",
        licence="Apache-2.0",
    )

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """One cut before the connector, or one behind it that the attention is carried to."""
        total = geometry.total
        crops = min(max(1024 * total // (576 * tokens), 1), total) if self.crops is None else self.crops
        if not 1 <= crops <= total:
            raise MethodError(f"crops={crops} of holov does not fit {total} tokens; choose 1..{total}")
        if tokens == total:
            return ()
        places = bands(total, crops)

        def observe(signals: Signals, carry: Carry) -> Outcome:
            return {"attention": signals["cls_attention"].mean(dim=1)[:, 1:]}

        def choose(signals: Signals, carry: Carry) -> Outcome:
            attention = carry["attention"] if "attention" in carry else observe(signals, carry)["attention"]
            band, score = torch.tensor(places, device=attention.device), attention
            if self.rank_by == "holistic":
                score = holistic(attention, signals["tokens"], band, self.alpha)
            bonus = 2 + abs(self.alpha)
            return {"score": spread(attention, score, band, crops=crops, keep=tokens, bonus=bonus)}

        site, reads = f"vision.layers.{geometry.vision.layers_used - 1}", self.facts.reads
        if self.rank_by == "attn":
            return (Stage(site=site, reads=reads, rule=choose, how="choose", keep=tokens),)
        return (
            Stage(site=site, reads=reads, rule=observe, how="observe", keep=total, carries=("attention",)),
            Stage(site="connector", reads=("tokens",), rule=choose, how="choose", keep=tokens),
        )
