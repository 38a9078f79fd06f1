"""VLA-Pruner: keep what the prompt looks at and what the last actions looked at, thinned out by diversity.

Source      arXiv:2511.16449; MINT-SJTU/VLA-Pruner (reference code).
Reads       received_attention [batch, n] (mean over heads and all rows) or last_attention [batch, heads, n] of language
            layer `layer` - 1, entered [batch, n, hidden], and from the caller guide [batch, n], the decayed sum of
            earlier action attention; last_attention of layer `action_layer` for every row that says an action.
Gives       score [batch, n]: 1 for the kept tokens. Candidates are the `tokens` best by attention and the `tokens` best
            by guide; of their union the greedy max-min of cosine distance keeps `tokens`. action_attention [batch, n
            of that layer], mean over heads, goes to the caller with the prompt and with every decoded row.
Cost        one attention map (or row), one product of all tokens with one another, a short loop per token kept, one
            attention row per decoded token.
Differs     ties to the lower index. A guide of zeros means no history: the attention's own candidates stay. What the
            caller does with action_attention is exporters/device/episode.py.
Raises      MethodError for layers that the language model does not have.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tokcarve.passes.choose import LOWEST, best, one_hot, take, top_mask
from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.greedy import apart
from tokcarve.passes.schedule import after_layer
from tokcarve.passes.stage import Carry, Frozen, Method, MethodFacts, Outcome, Signals, Stage

__all__ = ["VLAPruner", "candidates", "thinned"]

NEVER = -1e30  # below every distance, above no candidate


def candidates(attended: Tensor, guide: Tensor, tokens: int) -> Tensor:
    """1.0 for the `tokens` best of either score [batch, n]; without a history, of the first alone."""
    history = (guide.abs().amax(dim=1, keepdim=True) > 0).float()
    return torch.maximum(top_mask(attended, tokens).float(), top_mask(guide, tokens).float() * history)


def thinned(far: Tensor, among: Tensor, tokens: int) -> Tensor:
    """`tokens` of the candidates `among` [batch, n], in the order of picking; far [batch, n, n] as `apart` gives it."""
    both = among.unsqueeze(1) * among.unsqueeze(2)
    others = torch.where(both * (far > LOWEST) > 0, far, -LOWEST)
    nearest = torch.minimum(others.amin(dim=1), others.amin(dim=2))
    # a candidate without another has nothing near, and the rest never is picked
    picked = [best(torch.where(among > 0, nearest, NEVER))]
    distance = torch.where(among > 0, take(far, picked[0].unsqueeze(1)).squeeze(1), NEVER)
    for _ in range(tokens - 1):
        spent = one_hot(torch.stack(picked, dim=1), far.shape[1]).sum(dim=1)
        picked.append(best(torch.where(spent > 0, 2 * NEVER, distance)))
        distance = torch.minimum(distance, take(far, picked[-1].unsqueeze(1)).squeeze(1))
    return torch.stack(picked, dim=1)


def _told(signals: Signals, carry: Carry) -> Outcome:
    return {"action_attention": signals["last_attention"].mean(dim=1)}


@dataclass(frozen=True, kw_only=True)
class VLAPruner(Method):
    """layer: how many language layers see all tokens. action_layer: whose attention tells of an action; None is the
    middle one, 15 of 32. attention: of all rows of the prompt ("prefill") or of its last ("last")."""

    layer: int = 3
    action_layer: int | None = None
    attention: Literal["prefill", "last"] = "prefill"

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="VLA-Pruner",
        stage="in the language model",
        text_aware=True,
        reads=("received_attention", "entered", "guide", "last_attention"),
        count="exact",
        cost="one attention map, one product of all tokens with one another, a short loop per token kept",
        source="arXiv:2511.16449",
        licence="MIT",
    )

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """One cut behind layer `layer` - 1, and a look at layer `action_layer`, which keeps as many."""
        site = after_layer(geometry, self.layer - 1)
        middle = max(self.layer, (geometry.text.layers - 1) // 2)
        watching = middle if self.action_layer is None else self.action_layer
        if not self.layer <= watching < geometry.text.layers:
            raise MethodError(
                f"vla_pruner looks at the actions of layer {watching}, and this language model prunes before layer "
                f"{self.layer} of {geometry.text.layers}; choose action_layer between them"
            )
        look = Stage(
            site=f"language.layers.{watching}",
            reads=("last_attention",),
            rule=_told,
            how="observe",
            keep=tokens,
            gives=("action_attention",),
        )
        if tokens == geometry.total:
            return (look,)
        of = "received_attention" if self.attention == "prefill" else "last_attention"

        def rule(signals: Signals, carry: Carry) -> Outcome:
            attended = signals[of] if self.attention == "prefill" else signals[of].mean(dim=1)
            far = apart(signals["entered"])
            picked = thinned(far, candidates(attended, signals["guide"].float(), tokens), tokens)
            return {"score": one_hot(picked, far.shape[1]).sum(dim=1)}

        return Stage(site=site, reads=(of, "entered", "guide"), rule=rule, how="choose", keep=tokens), look
