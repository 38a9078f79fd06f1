"""TokenCarve: rank tokens by attention and by their part in the spectrum of all, keep some and fold some into others.

Source      arXiv:2503.10501; code ShawnTan86/TokenCarve @ a57bd59.
Reads       last_attention [batch, heads, n] and states [batch, n, hidden] of language layer `layer` - 1.
Gives       index, the better half of the 3/2 `tokens` tokens ranked highest and what stays of the other half; weights
            [batch, keep, m]: the members of the other half most alike (cosine) to one of the first are averaged into
            it. Ranks are those of the mean attention of the last row and of the contribution sum_k |U_jk| sigma_k.
Cost        one attention row, products of the two halves, and the contribution. Of 576 tokens, with the share of 128
            kept that float64 eigenvectors keep, on the tests' recorded model, on the bundled one and on rows drawn 896
            wide (benchmarks/contribution.py):
              all directions, 10 rounds    90 %    92 %    92 %
                              40          100 %   100 %   100 %
              64 leading, 40 rounds       100 %    98 %    93 %
              128 leading, 40 rounds      100 %   100 %    93 %
              norm                         57 %    76 %    85 %
            128 leading ones take 5.5 % of the prefill of a 0.5B shape (benchmarks/language.py).
Differs     the first image row is the image's own, where the code starts one row late. Ties to the lower index.
            contribution: singular (default) turns towards U in `rounds` rounds, since ONNX has no eigensolver, in
            `directions` of all and estimates what lies outside: with as many as the model is wide, or the image has
            tokens, it is exact. eigh is torch's, for comparison, and is not exported; norm is the length of the row,
            another ranking.
Raises      MethodError for a count above 2/3 of the tokens, or a layer that the language model does not have.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tokcarve.passes.choose import best, one_hot, rank, sorting, take, top_in_order, top_mask, unit
from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.schedule import after_layer
from tokcarve.passes.spectrum import along_leading, along_singular_by_eigh
from tokcarve.passes.stage import Carry, Frozen, Method, MethodFacts, Outcome, Signals, Stage

__all__ = ["Contribution", "TokenCarve", "carving"]

Contribution = Literal["singular", "eigh", "norm"]


def carving(score: Float[Tensor, "batch n"], states: Float[Tensor, "batch n hidden"], tokens: int) -> Outcome:
    """The merge that leaves `tokens` by this score, higher first."""
    ranked = 3 * tokens // 2
    first, merged = ranked // 2, min(tokens // 2, ranked // 2)
    place = rank(score)
    if not merged:
        index = top_in_order(score, tokens)
        return {"index": index, "weights": one_hot(index, score.shape[1])}
    better = top_in_order((place < first).float(), first)
    other = top_in_order((place < ranked).float() - (place < first).float(), ranked - first)
    units = unit(states)
    alike = take(units, other) @ take(units, better).transpose(1, 2)
    goes = top_mask(alike.amax(dim=2), merged).float()
    joins = (one_hot(best(alike), first) * goes.unsqueeze(2)).transpose(1, 2)
    own = 1 / (1 + joins.sum(dim=2))
    left = top_in_order(1 - goes, ranked - first - merged)
    index = torch.cat([better, take(other, left)], dim=1)
    made = {
        "index": index,
        "own": torch.cat([own, torch.ones_like(left).float()], dim=1),
        "weights": torch.cat([joins * own.unsqueeze(2), joins.new_zeros(*left.shape, ranked - first)], dim=1),
    }
    rising = sorting(index, score.shape[1])
    return {**{name: take(value, rising) for name, value in made.items()}, "sources": other}


@dataclass(frozen=True, kw_only=True)
class TokenCarve(Method):
    """layer: how many language layers see all tokens. weight: of the rank by attention, the rest is contribution's.

    contribution, rounds, directions: see the header.
    """

    layer: int = 2
    weight: float = 0.5
    contribution: Contribution = "singular"
    rounds: int = 40
    directions: int = 128

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="TokenCarve",
        stage="in the language model",
        text_aware=True,
        reads=("last_attention", "states"),
        count="exact, up to 2/3 of the tokens",
        cost="one attention row, and the singular vectors of all tokens",
        source="arXiv:2503.10501",
        licence="Apache-2.0",
    )

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """One merge behind layer `layer` - 1."""
        total = geometry.total
        if tokens == total:
            return ()
        if 3 * tokens // 2 > total:
            raise MethodError(
                f"tokencarve folds 1 token into every 2 that it leaves, so of {total} tokens it leaves at most "
                f"{(2 * total + 1) // 3}, and {tokens} were asked for; ask for fewer"
            )

        def rule(signals: Signals, carry: Carry) -> Outcome:
            return carving(self.points(signals), signals["states"], tokens)

        return (
            Stage(
                site=after_layer(geometry, self.layer - 1),
                reads=("last_attention", "states"),
                rule=rule,
                how="merge",
                keep=tokens,
                cuts_cache=True,
            ),
        )

    def points(self, signals: Signals) -> Float[Tensor, "batch n"]:
        """Both ranks of every token, weighed, as points from n down."""
        seen, given = rank(signals["last_attention"].mean(dim=1)), rank(self.contributions(signals["states"]))
        total = seen.shape[1]
        return self.weight * (total - seen) + (1 - self.weight) * (total - given)

    def contributions(self, states: Float[Tensor, "batch n hidden"]) -> Float[Tensor, "batch n"]:
        """What every token adds to the spectrum of all, by `contribution`."""
        if self.contribution == "norm":
            return states.square().sum(dim=2).sqrt()
        if self.contribution == "singular":
            return along_leading(states, self.rounds, self.directions)
        if torch.compiler.is_exporting():
            raise MethodError(
                "contribution=eigh of tokencarve has no form in ONNX; choose singular, which equals it, or norm"
            )
        return along_singular_by_eigh(states)
