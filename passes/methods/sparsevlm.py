"""SparseVLM: words that resemble the image rate its tokens at three layers; the best of the dropped go into clusters.

Source      arXiv:2410.04417 (ICML 2025), version 1.5 and SparseVLM+; code Gumpest/SparseVLMs @ 26a5f48.
Reads       entered and entered_text, asked [batch, places], text_attention [batch, heads, places, n] of layers 2, 6 and
            15 of 32; v1.5 also states [batch, n, hidden], plus text_gravity [batch, places, n].
Gives       score [batch, n]: attention probability from the raters, mean over them and over heads; higher means keep.
            plus divides attention by the pull of RoPE alone, averages the heads that then sum highest, and chooses.
            v1.5 merges: own 1 and weights 0 for kept tokens, behind them the means of clusters, the clearest first.
Cost        attention of all text rows; v1.5 also one [q, q] product, q being 3 in 10 of the dropped, and one merge.
Differs     published lists of kept tokens leave 113, 39, 27 and 18 (plus: 118, 60, 28, 20) of 576 behind the last
            layer, "192, 128, 96, 64" by their own count per layer. Other counts follow straight lines between those,
            from none to all, as shares of the model's tokens. A cut that would drop nothing is left out. No noise on
            densities: of equals the better rated is denser. plus averages 14 of 32 heads, scaled to the model's.
            Where no word is above the mean, all words rate. Ties to the lower index.
Raises      MethodError for layers that are not three, heads that the model does not have, and a count that the clusters
            alone exceed.
"""

from bisect import bisect_right
from dataclasses import dataclass
from functools import partial, reduce
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tokcarve.passes.choose import LOWEST, top_mask
from tokcarve.passes.clusters import recycling
from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.schedule import layers_at, on_lines
from tokcarve.passes.stage import Carry, Frozen, Method, MethodFacts, Outcome, Rule, Signals, Stage

__all__ = ["SparseVLM", "raters"]

PUBLISHED, OF = (2, 6, 15), 576
KEPT = {
    "v1.5": ((66, 30, 17), (238, 48, 26), (303, 110, 36), (300, 200, 110)),
    "plus": ((66, 34, 20), (246, 54, 28), (238, 108, 60), (300, 200, 118)),
}
READS = ("entered", "entered_text", "asked", "text_attention")
LEAST_PULL = 1e-6  # RoPE may pull with nothing at some distance


def raters(
    image: Float[Tensor, "batch n hidden"], text: Float[Tensor, "batch p hidden"], asked: Float[Tensor, "batch p"]
) -> Float[Tensor, "batch p"]:
    """1.0 for the words with more than a mean share of the image, whose tokens split by softmax of plain products."""
    products = torch.where(asked.unsqueeze(1) > 0, image @ text.transpose(1, 2), LOWEST)
    share = torch.softmax(products, dim=2).mean(dim=1)
    mean = (share * asked).sum(dim=1, keepdim=True) / asked.sum(dim=1, keepdim=True).clamp_min(1)
    above = (share > mean).float() * asked
    return above + (1 - above.amax(dim=1, keepdim=True)) * asked


def _rated(signals: Signals, seen: Float[Tensor, "batch heads p n"]) -> Float[Tensor, "batch heads n"]:
    by = raters(signals["entered"], signals["entered_text"], signals["asked"])
    by = by / by.sum(dim=1, keepdim=True).clamp_min(1)
    return (by[:, None, None] @ seen).squeeze(2)


def _choosing(heads: int) -> Rule:
    def rule(signals: Signals, carry: Carry) -> Outcome:
        pull = signals["text_gravity"].unsqueeze(1)
        pull = torch.where(pull.abs() < LEAST_PULL, LEAST_PULL, pull)
        seen = _rated(signals, signals["text_attention"] / pull)
        counted = top_mask(seen.sum(dim=2), heads).float() / heads
        return {"score": (counted.unsqueeze(1) @ seen).squeeze(1)}

    return rule


def _merging(count: int, kept: int) -> Rule:
    def rule(signals: Signals, carry: Carry) -> Outcome:
        score = _rated(signals, signals["text_attention"]).mean(dim=1)
        return recycling(score, signals["states"], kept, *_recycled(count - kept))

    return rule


def _recycled(dropped: int) -> tuple[int, int]:
    """How many of the dropped tokens are recycled, and into how many clusters."""
    tokens = 3 * dropped // 10 + 1
    return tokens, tokens // 10 + 1


@dataclass(frozen=True, kw_only=True)
class SparseVLM(Method):
    """layers: three, dropped behind these, 0-based (None: the published ones, scaled to the model's depth).

    heads: how many plus averages (None: 14 of 32, scaled to the model's).
    """

    version: Literal["v1.5", "plus"] = "v1.5"
    layers: tuple[int, ...] | None = None
    heads: int | None = None

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="SparseVLM",
        stage="in the language model",
        text_aware=True,
        reads=(*READS, "states"),
        count="exact, by lists of tokens to keep",
        cost="attention of all text rows at three layers, and three small merges",
        source="arXiv:2410.04417",
        licence="Apache-2.0",
    )

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """A cut behind each of three layers."""
        if tokens == geometry.total:
            return ()
        sites = layers_at(geometry, self.layers, PUBLISHED)
        if len(sites) != len(PUBLISHED):
            raise MethodError(f"layers={self.layers} names {len(sites)}, and sparsevlm's lists have three; name three")
        total, plus = geometry.text.heads, self.version == "plus"
        heads = max(1, round(total * 14 / 32)) if self.heads is None else self.heads
        if not 1 <= heads <= total:
            raise MethodError(f"heads={heads} of the {total} that this language model has; choose 1..{total}")
        return tuple(
            Stage(
                site=site,
                reads=(*READS, "text_gravity" if plus else "states"),
                rule=_choosing(heads) if plus else _merging(count, kept),
                how="choose" if plus else "merge",
                keep=left,
                positions="original" if plus else "renumbered",
            )
            for site, (count, kept, left) in zip(sites, self.cuts(geometry.total, tokens), strict=True)
            if left < count
        )

    def cuts(self, total: int, tokens: int) -> list[tuple[int, int, int]]:
        """Of each cut: tokens before it, those kept as they are, and, with clusters, those left behind it."""
        ends = ((0, (0, 0, 0)), (OF, (OF, OF, OF)))
        points = sorted([*ends, *((reduce(self._left, kept, OF), kept) for kept in KEPT[self.version])])
        found, count = list[tuple[int, int, int]](), total
        for wanted in on_lines(points, tokens * OF / total):
            # more kept never leaves fewer, so the most that leaves no more than `tokens` can be searched for
            most = bisect_right(range(count + 1), tokens, key=partial(self._left, count)) - 1
            kept = most if len(found) == 2 else min(max(round(wanted * total / OF), most), count)
            found.append((count, kept, self._left(count, kept)))
            count = found[-1][2]
        if count != tokens:
            raise MethodError(f"clusters alone are more than the {tokens} of {total} tokens asked for; keep more")
        return found

    def _left(self, count: int, kept: int) -> int:
        return kept + (_recycled(count - kept)[1] if self.version == "v1.5" and kept < count else 0)
