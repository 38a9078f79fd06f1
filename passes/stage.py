"""What a method is made of: the facts about it, and the stages it plans."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor

from tokcarve.passes.geometry import Geometry

if TYPE_CHECKING:
    from tokcarve.passes.trainee import Trainee

__all__ = [
    "Carry",
    "Decision",
    "Fit",
    "Frozen",
    "How",
    "Look",
    "Method",
    "MethodFacts",
    "Outcome",
    "Rule",
    "Signals",
    "Span",
    "Stage",
]

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

    `rule(signals, carry)` is a pure function. signals holds the taps named in `reads` (and "alive" while tokens are
    masked, bool [batch, n], or while a Trainee drops them softly, float32 in 0..1); carry holds what the rule before
    it handed on, cut to the tokens of this site. The outcome holds every name in `carries`, [batch, n, ...], and
      observe  nothing else: no token is dropped here
      choose   "score" [batch, n], higher means keep: the `keep` best stay, in image order; perhaps also "passing" int64
               [batch]: how many an image would keep if no count was set, which calibration may ask for
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
    Those of a Decision may read anything, for only the prompt is run.
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


@dataclass(frozen=True, kw_only=True)
class Span:
    """One dimension of a search: from `low` to `high`; `start` is where the method stands. of: the hyper-parameter that
    it decides, where it is not the one of its name."""

    low: float
    high: float
    start: float
    of: str | None = None


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


@dataclass(frozen=True, kw_only=True)
class Look:
    """One sample under a Decision. seen: what its `measure` made; counted: round by round, "counts" and "passing" by
    site (see calibrate.Observed); tried: round by round, for every variant kl, same, cosine (see asking.Likeness), and
    surprise and full_surprise: nats per token of the full model's answer under the variant and under the full model
    itself."""

    seen: Mapping[str, Any] = field(default_factory=dict)
    counted: Sequence[Mapping[str, Mapping[str, int]]] = ()
    tried: Sequence[Sequence[Mapping[str, Any]]] = ()


class Decision(ABC):
    """What a method leaves open, and how samples settle it: each is looked at, and all looks give the parameters.

    With `each`, one sample alone decides too: that is the form which decides per image. Without `by_quantile`, it is by
    the mean that samples settle it, whatever was asked.
    """

    each: ClassVar[bool] = False
    by_quantile: ClassVar[bool] = True

    def stages(self) -> tuple[Stage, ...]:
        """Put into the unpruned model; what they give of a prompt is measured."""
        return ()

    def measure(self, given: Mapping[str, Tensor]) -> dict[str, Any]:
        """JSON of what `stages` gave of one sample, tensors [1, ...]."""
        return {}

    def counting(self, looks: Sequence[Look]) -> "Method | None":
        """The form that decides per image whose counts the next round takes; None when enough are known."""
        return None

    def tries(self, looks: Sequence[Look]) -> tuple["Method", ...]:
        """Variants that the next round compares with the full model; () when enough is known."""
        return ()

    @abstractmethod
    def settle(self, looks: Sequence[Look]) -> tuple["Method", dict[str, list[int | float]]]:
        """The method with its parameters fixed, and the least and most over samples of what fixed them, by name."""


class Method(ABC):
    """A published way of reducing visual tokens: a frozen dataclass of hyper-parameters and a plan."""

    facts: ClassVar[MethodFacts]

    @abstractmethod
    def stages(self, geometry: Geometry, tokens: int, frozen: Frozen | None) -> tuple[Stage, ...]:
        """The stages that leave exactly `tokens` visual tokens; `frozen` is what calibration fixed, if it ran."""

    def dynamic(self) -> "Method | None":
        """The per-image form whose counts calibration measures; None for a method that leaves no count open."""
        return None

    def decides(self, geometry: Geometry, tokens: int, quantile: float | None = None) -> Decision | None:
        """How samples settle the parameters that are open, by mean or by `quantile`; None where none is."""
        return None

    def fit(self, geometry: Geometry, tokens: int) -> Fit | None:
        """What learns this method's tensors from samples; None for a method without any."""
        return None

    def trainable(self, geometry: Geometry, tokens: int) -> "Trainee | None":
        """The module of this method that is trained on samples; None for a method without one."""
        return None

    def learns(self, geometry: Geometry, tokens: int) -> bool:
        """Whether the method cannot do without samples."""
        return self.fit(geometry, tokens) is not None or self.trainable(geometry, tokens) is not None

    def space(self, geometry: Geometry, tokens: int, *, exact: bool) -> Mapping[str, Span]:
        """What a search over samples may vary, by name; nothing for a method that says nothing of it.

        With `exact` the count behind the last stage was asked for, else only what `tokens` comes to.
        """
        return {}

    def at(self, point: Mapping[str, float], geometry: Geometry, tokens: int, *, exact: bool) -> "tuple[Method, int]":
        """The method at a point of its space, or of a part of it, and its count: of no larger mean over the language
        layers than this method has at `tokens`."""
        return replace(self, **point), tokens  # type: ignore[type-var]
