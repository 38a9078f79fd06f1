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
            The form "budget" has constant thresholds, an eighth and a grid token's own: the grid comes first of those
            who do not pass. From samples: the importance that as many pass as the counts have in the mean.
Raises      MethodError without trained tensors, for counts that rise, for layers that do not, or that are not there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tokcarve.passes.choose import unit
from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.schedule import divided_as, dropping, geometric, layers_at, named
from tokcarve.passes.stage import Decision, Frozen, Method, MethodFacts, Stage
from tokcarve.passes.thresholds import Passing, neutral, on_grid, rule_of
from tokcarve.passes.trainee import Trainee, Trial

__all__ = ["ATPLlava", "ThresholdHeads"]

PUBLISHED = (4, 14, 24)
NAMES = ("proj.weight", "proj.bias", "theta.weight", "theta.bias")
USUAL = 0.125  # threshold of importance without samples: where the heads begin


@dataclass(frozen=True, kw_only=True)
class ATPLlava(Method):
    """layers: cut behind these, 0-based (None: the published ones, scaled). stride: of the grid. width: of the heads.
    deep, target: weights of the losses, lambda_atp and lambda_target. form: heads that are trained, or a budget, with
    constant thresholds (importance, place) and counts behind all cuts but the last; None: see the header."""

    form: Literal["heads", "budget"] = "heads"
    layers: tuple[int, ...] | None = None
    stride: int = 2
    width: int = 64
    deep: float = 0.05
    target: float = 0.2
    thresholds: tuple[float, float] | None = None
    counts: tuple[int, ...] | None = None

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
        return ThresholdHeads(self, geometry, tokens) if self.form == "heads" and tokens < geometry.total else None

    def decides(self, geometry: Geometry, tokens: int, quantile: float | None = None) -> Decision | None:
        """The thresholds and counts of the form without heads, unless both were named."""
        if self.form == "heads" or tokens == geometry.total or None not in (self.thresholds, self.counts):
            return None
        importance, place = self.thresholds or (None, neutral(self.stride))
        own, spatial = self.counts, on_grid(geometry, self.stride)

        def fix(thresholds: tuple[float, float], counts: tuple[int, ...]) -> Method:
            return replace(self, thresholds=thresholds, counts=counts if own is None else own)

        return Passing(geometry, _planned(self, geometry, tokens), importance, place, spatial, quantile, fix)

    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """A cut behind each of the layers, the counts falling to `tokens`."""
        if tokens == geometry.total:
            return ()
        counts = planned = _planned(self, geometry, tokens)
        heads: dict[str, list[Tensor]] = {}
        if self.form == "heads":
            if frozen is None or "0.proj.weight" not in frozen.tensors:
                raise MethodError(
                    "atp_llava scores with trained heads, and there are none; pass --samples to train them"
                )
            # an artifact does not name cuts that drop nothing
            counts = dict(frozen.counts) or planned
            heads = {site: [frozen.tensors[f"{i}.{name}"] for name in NAMES] for i, site in enumerate(planned)}
        falling = dropping(geometry.total, [(site, counts.get(site, geometry.total)) for site in planned])
        return tuple(_stage(self, geometry, site, keep, heads.get(site)) for site, keep in falling)


def _planned(method: ATPLlava, geometry: Geometry, tokens: int) -> dict[str, int]:
    sites = layers_at(geometry, method.layers, PUBLISHED)
    counts = geometric(geometry.total, tokens, len(sites))
    if method.form == "budget" and method.counts is not None:
        counts = named(method.counts, geometry.total, tokens, len(sites), "atp_llava")
    return dict(zip(sites, counts, strict=True))


def _stage(method: ATPLlava, geometry: Geometry, site: str, keep: int, head: Sequence[Tensor] | None) -> Stage:
    def live(read: Tensor) -> Tensor:
        assert head is not None
        proj, bias, theta, level = (tensor.to(read.device) for tensor in head)
        return torch.sigmoid((unit(read) @ proj.T + bias) @ theta.T + level)

    constant = torch.tensor([method.thresholds or (USUAL, neutral(method.stride))])
    rule = rule_of(on_grid(geometry, method.stride), constant if head is None else live)
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
