"""DART: behind an early layer, drop the visual tokens that repeat what a few pivots say.

Source      arXiv:2502.11494 (EMNLP 2025); code ZichenWen1/DART, read in the ports of LightCompress and others.
Reads       visual_keys [batch, kv_heads, n, dim] and text_keys [batch, kv_heads, places, dim] of language layer
            `layer` - 1; normed_states [batch, n, hidden] and normed_text [batch, places, hidden] behind it.
Gives       score [batch, n]: 1 for what is kept, 0 for the rest. Pivots are the tokens of the image, and of the text
            behind it, whose keys have the largest L1 norm. Image pivots stay; then every pivot in turn keeps the tokens
            least alike (cosine) to it of those that are left.
Cost        the keys' norms, one product of the pivots with all tokens, and a short loop per pivot.
Differs     pivots take their turns in the order of their rows, image before text; in the code, in that of a set. They
            share `tokens` - `image_pivots` evenly, the first of them one more each, where the code rounds down. Where
            the text has too few words, its first pivot takes the turns of those missing. Ties to the lower index.
Raises      MethodError for fewer tokens than image pivots, or a layer that the language model does not have.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokcarve.passes.choose import best, one_hot, take, top_in_order, top_mask, unit
from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.schedule import after_layer
from tokcarve.passes.stage import Carry, Frozen, Method, MethodFacts, Outcome, Signals, Stage

__all__ = ["DART", "least_alike", "shares", "text_turns"]

GONE = 4.0  # more than two cosines can differ by


def shares(count: int, turns: int) -> tuple[int, ...]:
    """`count` split over `turns` as evenly as can be, the first ones larger."""
    return tuple(count // turns + (turn < count % turns) for turn in range(turns))


def least_alike(
    pivots: Float[Tensor, "batch p hidden"],
    tokens: Float[Tensor, "batch n hidden"],
    kept: Float[Tensor, "batch n"],
    quota: Sequence[int],
) -> Float[Tensor, "batch n"]:
    """1.0 for tokens kept: those that were, and by every pivot in turn its `quota` of the others, least alike first."""
    alike = unit(pivots) @ unit(tokens).transpose(1, 2)
    for turn, count in enumerate(quota):
        kept = kept + top_mask(-alike[:, turn] - GONE * kept, count).float()
    return kept


def text_turns(norm: Float[Tensor, "batch places"], turns: int) -> Int[Tensor, "batch {turns}"]:
    """The places with the largest norms in rising order, behind them the largest for every turn without a word."""
    padded = torch.nn.functional.pad(norm, (0, turns))
    found = top_in_order(padded, turns)
    return torch.where(take(padded, found) > 0, found, best(norm).unsqueeze(1))


@dataclass(frozen=True, kw_only=True)
class DART(Method):
    """layer: how many language layers see all tokens. image_pivots, text_pivots: how many of each."""

    layer: int = 2
    image_pivots: int = 4
    text_pivots: int = 4

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="DART",
        stage="in the language model",
        text_aware=True,
        reads=("visual_keys", "text_keys", "normed_states", "normed_text"),
        count="exact",
        cost="one product of all tokens with the pivots, and a short loop per pivot",
        source="arXiv:2502.11494",
        licence="Apache-2.0",
    )

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """One cut behind layer `layer` - 1."""
        if tokens == geometry.total:
            return ()
        if tokens < self.image_pivots:
            raise MethodError(
                f"dart keeps its {self.image_pivots} image pivots, and {tokens} tokens were asked for; ask for more, "
                f"or choose image_pivots=1..{tokens}"
            )
        quota = shares(tokens - self.image_pivots, self.image_pivots + self.text_pivots)

        def rule(signals: Signals, carry: Carry) -> Outcome:
            longest = signals["visual_keys"].abs().sum(dim=(1, 3))
            image = top_in_order(longest, self.image_pivots)
            text = text_turns(signals["text_keys"].abs().sum(dim=(1, 3)), self.text_pivots)
            states = signals["normed_states"]
            pivots = torch.cat([take(states, image), take(signals["normed_text"], text)], dim=1)
            return {"score": least_alike(pivots, states, one_hot(image, states.shape[1]).sum(dim=1), quota)}

        reads = ("visual_keys", "text_keys", "normed_states", "normed_text")
        site = after_layer(geometry, self.layer - 1)
        return (Stage(site=site, reads=reads, rule=rule, how="choose", keep=tokens),)
