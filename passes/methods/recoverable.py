"""Recoverable Compression, fixed budget: what [CLS] sees, what the question recovers, and the rest in clusters.

Source      arXiv:2409.01179 (AAAI 2025); code banjiuyufen/Recoverable-Compression @ d927594.
Reads       next_keys and next_cls_query of the layer behind the last used one, tokens [batch, n, hidden] behind the
            connector, text [batch, hidden], the question.
Gives       own 1 and weights 0 for kept tokens; a cluster is its centre plus its nearest tokens, each weighted by its
            single-head attention from [CLS] (0 to 1), not divided; the last token sums what is no centre that way.
Cost        keys of one layer and its [CLS] row, a [clusters, n] product of keys, one [keep, n] merge.
Differs     outliers do not set the counts: clusters are a share of the budget (at least one), with the last token
            beside them, and the others are split by text_share. LLaVA checkpoints have no CLIP text tower: similarity
            is the cosine with the question's mean embedding over sqrt(hidden), and merging is behind the connector,
            where the two meet. Clusters use the keys of the tokens they hold, as the paper has it, where the code
            takes those of others. Fewer than `neighbours` tokens left: all of them. order: raster (default) sorts by
            patch, the last token by its most attended one; published ends with clusters by falling attention, and it.
Raises      MethodError for a tower without [CLS]; TapNotFound where no layer is behind the last used one.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from tokcarve.passes.bipartite import Order
from tokcarve.passes.choose import LOWEST, best, one_hot, rank, sorting, take, top_in_order, top_mask, unit
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.stage import Carry, Frozen, Method, MethodFacts, Outcome, Signals, Stage

__all__ = ["Recoverable", "attended"]


def attended(signals: Signals, carry: Carry) -> Outcome:
    """Attention of [CLS] to every patch as if the layer had one head, [batch, n], and the patches' keys."""
    keys, query = (signals[name].transpose(1, 2).flatten(2) for name in ("next_keys", "next_cls_query"))
    share = torch.softmax(query @ keys.transpose(1, 2) / keys.shape[2] ** 0.5, dim=2)
    return {"seen": share[:, 0, 1:], "keys": keys[:, 1:]}


@dataclass(frozen=True, kw_only=True)
class Recoverable(Method):
    """clusters: share of the budget (0: none, and no last token). text_share: of the kept tokens.

    text_weight: of similarity to the question among neighbours. neighbours: tokens in a cluster besides its centre.
    """

    clusters: float = 0.1
    text_share: float = 0.5
    text_weight: float = 50.0
    neighbours: int = 32
    order: Order = "raster"

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="Recoverable Compression",
        stage="after the connector",
        text_aware=True,
        reads=("next_keys", "next_cls_query", "tokens", "text"),
        count="exact, split by shares of the budget",
        cost="keys and one attention row of one more layer, and one merge",
        source="arXiv:2409.01179",
        licence="Apache-2.0",
    )

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """Attention is read behind the last used vision layer, tokens merge behind the connector."""
        if tokens == geometry.total:
            return ()

        def rule(signals: Signals, carry: Carry) -> Outcome:
            rows, text = signals["tokens"], unit(signals["text"])
            alike = (unit(rows) @ text.unsqueeze(2)).squeeze(2) / rows.shape[2] ** 0.5
            return self.merged(carry["seen"], carry["keys"], alike, self.counts(tokens))

        reads = ("next_keys", "next_cls_query")
        site = f"vision.layers.{geometry.vision.layers_used - 1}"
        return (
            Stage(site=site, reads=reads, rule=attended, how="observe", keep=geometry.total, carries=("seen", "keys")),
            Stage(site="connector", reads=("tokens", "text"), rule=rule, how="merge", keep=tokens),
        )

    def counts(self, tokens: int) -> tuple[int, int, int]:
        """How many tokens are kept by [CLS] and by the question, and how many clusters there are."""
        clusters = min(tokens - 1, max(1, round(tokens * self.clusters))) if self.clusters else 0
        kept = tokens - clusters - (clusters > 0)
        recovered = round(kept * self.text_share)
        return kept - recovered, recovered, clusters

    def merged(
        self,
        seen: Float[Tensor, "batch n"],
        keys: Float[Tensor, "batch n dim"],
        alike: Float[Tensor, "batch n"],
        counts: tuple[int, int, int],
    ) -> Outcome:
        """The merge with `counts` as above; `alike` is the similarity to the question."""
        by_cls, by_text, clusters = counts
        total = seen.shape[1]
        first = top_mask(seen, by_cls)
        kept = first | top_mask(torch.where(first, LOWEST, alike), by_text)
        centre = top_mask(torch.where(kept, LOWEST, seen), clusters)
        other = ~(kept | centre)
        last = min(clusters, 1) * one_hot(best(torch.where(other, seen, LOWEST)), total)
        whole = (kept | centre).float()
        index = top_in_order(whole + last, by_cls + by_text + clusters + min(clusters, 1))
        units = unit(keys)
        score = take(units, index) @ units.transpose(1, 2) + self.text_weight * alike.unsqueeze(1)
        score = torch.where(kept.unsqueeze(1) | (one_hot(index, total) > 0), LOWEST, score)
        near = top_mask(score.flatten(0, 1), min(self.neighbours, total - by_cls - by_text - 1)).view_as(score)
        held = take(centre.float(), index).unsqueeze(2) * near + take(last, index).unsqueeze(2) * other.unsqueeze(1)
        made = {"index": index, "weights": held * seen.unsqueeze(1), "own": take(whole, index)}
        if self.order == "raster":
            return made
        behind = sorting(rank(take(torch.where(kept, 2.0, seen * whole - last), index)), index.shape[1])
        return {name: take(value, behind) for name, value in made.items()}
