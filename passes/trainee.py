"""What a method may train on samples while the model stays frozen: a small module that scores tokens."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tokcarve.passes.geometry import Geometry
from tokcarve.passes.stage import Frozen, Method, Stage

__all__ = ["Trainee", "Trial", "sharp"]


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One sample through the frozen model while a Trainee's stages drop tokens softly.

    divergence: from the full model's distribution over its own answer, mean over answer tokens, nats; alive [1, n] by
    site: how much of every token is left behind it, in 0..1; scores [1, n] by site: what the rules gave; taught: what
    the unpruned model showed at the teacher's tap.
    """

    divergence: Tensor
    alive: Mapping[str, Tensor]
    scores: Mapping[str, Tensor]
    taught: Tensor | None = None


class Trainee(ABC):
    """The module of `method` that leaves `tokens`. The rules of its stages score with the tensors, in training and
    after it; in training no token leaves: `gate` says how much of each is kept, and attention to the rest is damped.

    shapes: of the tensors by name; rate: of AdamW, where it begins to fall; teacher: site and tap of the unpruned
    model that `loss` is shown; teachers: those among which samples choose it, shallow ones first, by what is lost where
    the tokens that it values most are all that enters the language model; decides: whether training settles the counts
    too.
    """

    shapes: Mapping[str, tuple[int, ...]]
    rate: float = 1e-3
    teacher: tuple[str, str] | None = None
    teachers: tuple[tuple[str, str], ...] = ()
    decides: bool = False

    def __init__(self, method: Method, geometry: Geometry, tokens: int) -> None:
        self.method, self.geometry, self.tokens = method, geometry, tokens

    def start(self, seed: int) -> dict[str, Tensor]:
        """float32: vectors called weight are ones, other vectors zeros, matrices normal with variance 1 / columns."""
        draw = torch.Generator().manual_seed(seed)
        made = dict[str, Tensor]()
        for name, shape in self.shapes.items():
            if len(shape) > 1:
                made[name] = torch.randn(shape, generator=draw) / shape[-1] ** 0.5
            else:
                made[name] = torch.ones(shape) if name.endswith("weight") else torch.zeros(shape)
        return made

    def blank(self) -> dict[str, Tensor]:
        """Tensors of these shapes without numbers, enough to plan with."""
        return {name: torch.empty(shape, device="meta") for name, shape in self.shapes.items()}

    def stages(self, tensors: Mapping[str, Tensor]) -> tuple[Stage, ...]:
        """The method's stages with these tensors."""
        return self.method.stages(self.geometry, self.tokens, Frozen(tensors=tensors))

    def under(self, teacher: tuple[str, str]) -> "Trainee":
        """This, with `teacher`."""
        one = copy.copy(self)
        one.teacher = teacher
        return one

    def values(self, taught: Tensor) -> Tensor:
        """What a teacher's tap says of every token, [1, n], higher means keep; for one that has `teachers`."""
        raise NotImplementedError

    @abstractmethod
    def gate(self, score: Tensor, keep: int, done: float) -> Tensor:
        """How much of each token [1, n] is kept, in 0..1, after a share `done` of training."""

    @abstractmethod
    def loss(self, trial: Trial) -> Tensor:
        """The number that training lowers."""

    def counts(self, alive: Mapping[str, float]) -> dict[str, int]:
        """What to keep behind every site, by the mean over samples of the soft counts there; for one that `decides`."""
        return {}


def sharp(score: Tensor, keep: int, scale: float) -> Tensor:
    """Gates [batch, n] in 0..1 that sum to `keep`: sigmoid of `scale` times how far a score lies above a level, which
    is found by bisection; as `scale` grows they become 1 for the `keep` best and 0 for the rest."""
    fixed = scale * score.detach()
    low, high = fixed.amin(dim=1, keepdim=True) - 20, fixed.amax(dim=1, keepdim=True) + 20
    for _ in range(48):
        level = (low + high) / 2
        many = torch.sigmoid(fixed - level).sum(dim=1, keepdim=True) > keep
        low, high = torch.where(many, level, low), torch.where(many, high, level)
    level = (low + high) / 2
    # the level moves with the scores so that the sum stays
    slope = torch.sigmoid(fixed - level) * torch.sigmoid(level - fixed)
    slope = slope / slope.sum(dim=1, keepdim=True).clamp_min(1e-12)
    moves = (slope * (scale * score - fixed)).sum(dim=1, keepdim=True)
    return torch.sigmoid(scale * score - level - moves)
