"""What a method is made of: the facts about it, and the stages it plans."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from torch import Tensor

from tokcarve.passes.geometry import Geometry

__all__ = ["Carry", "Fit", "Frozen", "How", "Method", "MethodFacts", "Outcome", "Rule", "Signals", "Stage"]

How = Literal["observe", "choose", "mask", "merge", "resize", "exit", "lean"]
Signals = dict[str, Tensor]
Carry = dict[str, Tensor]
Outcome = dict[str, Tensor]
Rule = Callable[[Signals, Carry], Outcome]


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """What calibration fixed: counts {site: keep}, and a method's own tensors by name."""

    counts: Mapping[str, int] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


def _nothing(signals: Signals, carry: Carry) -> Outcome:
    return {}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One place where tokens are scored and possibly reduced.

    `rule(signals, carry)` is a pure function. signals holds the taps named in `reads` (and "alive", bool
    [batch, n], while tokens are masked); carry holds what the rule before it handed on, cut to the tokens of this
    site. The outcome holds every name in `carries`, [batch, n, ...], and
      observe  nothing else: no token is dropped here
      choose   "score" [batch, n], higher means keep: the `keep` best stay, in image order
      mask     "score" and "count" int64 [batch]: the rest stay in the tensor but are attended to no more
      merge    "index" int64 [batch, keep], the token each result stands for, "weights" [batch, keep, m] and perhaps
               "sources" int64 [batch, m], the tokens they weigh (default: all n), and "own" [batch, keep], the weight
               of the token itself (default 0); carries must already have the new length
      resize   nothing: the image is made smaller before it enters, at the site "pixels", to the patches of `grid`
      lean     nothing, and there is no rule: the language layer of its site keeps every token and works less for visual
               ones: they attend to no visual token `window` or more rows back, and their MLP has `neurons` neurons
      exit     nothing, and there is no rule: every visual token leaves a language model at its site, `keep` is 0
    With `biases`, a merge also gives "bias" [batch, keep], added to the attention logits of its results from here on.
    With `takes_cls`, the [CLS] row takes part in a merge as token -1, the first of its `n`, and is no prefix after it.
    In the language model, text always stays; `positions` says whether the rows that are left keep their position ids
    or are numbered again from 0 for the layers behind, and with `cuts_cache` the layers up to the site keep their keys
    and values of those rows only. An observing stage may name entries of its outcome in `gives`: whoever runs the model
    gets them, of the prompt and of every decoded row, whose last row is the new one; such a stage reads last_attention.
    """

    site: str
    reads: tuple[str, ...] = ()
    rule: Rule = _nothing
    how: How
    keep: int
    carries: tuple[str, ...] = ()
    gives: tuple[str, ...] = ()
    biases: bool = False
    takes_cls: bool = False
    grid: tuple[int, int] | None = None
    positions: Literal["original", "renumbered"] = "original"
    cuts_cache: bool = False
    window: int | None = None
    neurons: int | None = None


@dataclass(frozen=True, kw_only=True)
class MethodFacts:
    """What `tokcarve methods` prints of a method; one short phrase each."""

    title: str
    stage: str
    text_aware: bool
    reads: tuple[str, ...]
    count: str
    cost: str
    source: str
    licence: str


class Fit(ABC):
    """What a method learns from samples: fed the tokens that leave `site`, batch by batch, then solved once.

    Memory must not grow with the number of samples.
    """

    site: str

    @abstractmethod
    def add(self, tokens: Tensor) -> None:
        """Takes tokens float32 [batch, n, hidden] of the unpruned model in."""

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """What was taken in so far, to go on from after an interruption."""

    @abstractmethod
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from an earlier `state`."""

    @abstractmethod
    def solve(self) -> dict[str, Tensor]:
        """The tensors to freeze, by name."""

    @abstractmethod
    def loss(self, tensors: Mapping[str, Tensor], tokens: Tensor) -> float:
        """What freezing costs on held-out tokens [batch, n, hidden]: 0 is nothing, 1 as much as if all tokens of an
        image were its mean token."""


class Method(ABC):
    """A published way of reducing visual tokens: a frozen dataclass of hyper-parameters and a plan."""

    facts: ClassVar[MethodFacts]

    @abstractmethod
    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """The stages that leave exactly `tokens` visual tokens; `frozen` is what calibration fixed, if it ran."""

    def dynamic(self) -> "Method | None":
        """The per-image form whose counts calibration measures; None for a method that leaves no count open."""
        return None

    def fit(self, geometry: Geometry, tokens: int) -> Fit | None:
        """What learns this method's tensors from samples; None for a method without any."""
        return None
