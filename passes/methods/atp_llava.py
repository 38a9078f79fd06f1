"""ATP-LLaVA: three times in the language model, small heads set two thresholds: of importance, and of place on a grid.

Source      arXiv:2412.00447 (CVPR 2025), eq. 3 to 14; no code and no weights were found.
Reads       visual_attention [batch, n, n] and text_attention [batch, heads, places, n] of the layer before each cut,
            asked [batch, places].
Gives       score [batch, n] in -2..1: by how much a token passes the threshold that it passes best; the reference keeps
            what lies above 0.
Cost        three attention maps of the visual and text rows, and two thin products.
Differs     attention is behind softmax, its mean over heads, at length 1 where heads read it. Counts are constant: the
            last is the one asked for, the others have the mean over layers that a geometric schedule has, divided as
            mean soft counts on samples are. A thousandth of the importance tells equal margins apart. The base is
            frozen, the loss the divergence from its own full answer; in its other terms depth and counts are shares.
Raises      MethodError without trained tensors, and for layers that do not rise or that the model does not have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokcarve.passes.choose import LOWEST, one_hot, unit
from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.schedule import divided_as, dropping, geometric, layers_at
from tokcarve.passes.stage import Carry, Frozen, Method, MethodFacts, Outcome, Signals, Stage
from tokcarve.passes.trainee import Trainee, Trial

__all__ = ["ATPLlava", "ThresholdHeads", "margin"]

PUBLISHED = (4, 14, 24)
SAMPLED = 3.0  # the paper's lambda
NAMES = ("proj.weight", "proj.bias", "theta.weight", "theta.bias")


def margin(seen: Tensor, alive: Tensor, importance: Tensor, place: Tensor, spatial: Tensor) -> Tensor:
    """Eq. 9 to 11 before the sigmoid: [batch, n] of attention `seen`, thresholds [batch, 1] and eq. 5's `spatial`;
    attention counts from 0 for the least attended living token to 1 for the most."""
    there = alive > 0.5 * alive.amax(dim=1, keepdim=True)
    low = torch.where(there, seen, -LOWEST).amin(dim=1, keepdim=True)
    high = torch.where(there, seen, LOWEST).amax(dim=1, keepdim=True)
    worth = ((seen - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    return torch.maximum(worth - importance, spatial - place) + 0.001 * worth


@dataclass(frozen=True, kw_only=True)
class ATPLlava(Method):
    """layers: cut behind these, 0-based (None: the published ones, scaled). stride: of the grid. width: of the heads.
    deep, target: weights of the losses, lambda_atp and lambda_target."""

    layers: tuple[int, ...] | None = None
    stride: int = 2
    width: int = 64
    deep: float = 0.05
    target: float = 0.2

    facts: ClassVar[MethodFacts] = MethodFacts(
        title="ATP-LLaVA",
        stage="in the language model",
        text_aware=True,
        reads=("visual_attention", "text_attention", "asked"),
        count="exact",
        cost="attention maps of three layers, and thin products",
        source="arXiv:2412.00447",
        licence="no code",
    )

    def trainable(self, geometry: Geometry, tokens: int) -> Trainee | None:
        """The heads of all cuts."""
        return ThresholdHeads(self, geometry, tokens) if tokens < geometry.total else None

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """A cut behind each of the layers, the counts falling to `tokens`."""
        if tokens == geometry.total:
            return ()
        if frozen is None or "0.proj.weight" not in frozen.tensors:
            raise MethodError("atp_llava scores with trained heads, and there are none; pass --samples to train them")
        planned = _planned(self, geometry, tokens)
        # an artifact does not name cuts that drop nothing
        counts = frozen.counts or planned
        falling = dropping(geometry.total, [(site, counts.get(site, geometry.total)) for site in planned])
        heads = {site: [frozen.tensors[f"{i}.{name}"] for name in NAMES] for i, site in enumerate(planned)}
        return tuple(_stage(self, geometry, site, keep, heads[site]) for site, keep in falling)


def _planned(method: ATPLlava, geometry: Geometry, tokens: int) -> dict[str, int]:
    sites = layers_at(geometry, method.layers, PUBLISHED)
    return dict(zip(sites, geometric(geometry.total, tokens, len(sites)), strict=True))


def _stage(method: ATPLlava, geometry: Geometry, site: str, keep: int, head: Sequence[Tensor]) -> Stage:
    cell, columns = torch.arange(geometry.total), geometry.vision.grid[1]
    sampled = (cell // columns % method.stride + cell % columns % method.stride) == 0
    # off the grid nothing passes for its place
    spatial = torch.where(sampled, 1 - SAMPLED / method.stride**2, -1.0)

    def rule(signals: Signals, carry: Carry) -> Outcome:
        each, device = signals["visual_attention"], signals["visual_attention"].device
        slot = carry.get("slot", torch.arange(each.shape[1], device=device).expand(each.shape[0], -1))
        alive = signals.get("alive", torch.ones_like(each[:, 0]))
        own = (alive.unsqueeze(1) @ each).squeeze(1) / alive.sum(dim=1, keepdim=True).clamp_min(1e-6)
        rows = signals["asked"].sum(dim=1, keepdim=True).clamp_min(1)
        cross = signals["text_attention"].mean(dim=1).sum(dim=1) / rows
        # what is gone holds zero in its slot
        places = one_hot(slot, geometry.total)
        read = unit(torch.cat([((alive * one).unsqueeze(1) @ places).squeeze(1) for one in (own, cross)], dim=1))
        proj, bias, theta, level = (tensor.to(device) for tensor in head)
        limits = torch.sigmoid((read @ proj.T + bias) @ theta.T + level)
        score = margin((own + cross) / 2, alive, limits[:, :1], limits[:, 1:], places @ spatial.to(device))
        return {"score": score, "slot": slot}

    return Stage(site=site, reads=method.facts.reads, rule=rule, how="choose", keep=keep, carries=("slot",))


class ThresholdHeads(Trainee):
    """One head per cut, and their loss."""

    rate, decides = 1e-2, True

    def __init__(self, method: ATPLlava, geometry: Geometry, tokens: int) -> None:
        super().__init__(method, geometry, tokens)
        self.planned, self.deep, self.target = _planned(method, geometry, tokens), method.deep, method.target
        width, heads = method.width, range(len(self.planned))
        shapes = ((width, 2 * geometry.total), (width,), (2, width), (2,))
        self.shapes = {f"{i}.{name}": shape for i in heads for name, shape in zip(NAMES, shapes, strict=True)}

    def start(self, seed: int) -> dict[str, Tensor]:
        """Thresholds begin at about an eighth, where many tokens pass."""
        return {name: one - 2 if name.endswith("theta.bias") else one for name, one in super().start(seed).items()}

    def gate(self, score: Tensor, keep: int, done: float) -> Tensor:
        """Eq. 9 and 10, the temperature rising from 10 to 100."""
        return torch.sigmoid(10 * 10**done * score)

    def loss(self, trial: Trial) -> Tensor:
        """Eq. 12 to 14."""
        total, layers = self.geometry.total, self.geometry.text.layers
        shares = torch.stack([alive.sum() / total for alive in trial.alive.values()])
        depths = torch.tensor([(int(site.split(".")[2]) + 1) / layers for site in trial.alive])
        wanted = sum(self.planned[site] for site in trial.alive) / len(shares) / total
        off = (shares.mean() - wanted).abs()
        return trial.divergence + self.deep * (depths * shares).sum() + self.target * off

    def counts(self, alive: Mapping[str, float]) -> dict[str, int]:
        """The last is the one asked for, those before are divided as samples have them."""
        return divided_as(alive, self.planned, self.geometry.total)
