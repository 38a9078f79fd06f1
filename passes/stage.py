"""What a method is made of: the facts about it, and the stages it plans."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from tokcarve.passes.geometry import Geometry

__all__ = ["Carry", "Counts", "How", "Method", "MethodFacts", "Outcome", "Rule", "Signals", "Stage"]

How = Literal["observe", "choose", "mask", "merge"]
Signals = dict[str, Tensor]
Carry = dict[str, Tensor]
Outcome = dict[str, Tensor]
Rule = Callable[[Signals, Carry], Outcome]
Counts = Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One place where tokens are scored and possibly reduced.

    `rule(signals, carry)` is a pure function. signals holds the taps named in `reads` (and "alive", bool
    [batch, n], while tokens are masked); carry holds what earlier rules of this method returned under the names in
    `carries`, already cut to the tokens of this site. The outcome holds every name in `carries`, [batch, n, ...], and
      observe  nothing else: no token is dropped here
      choose   "score" [batch, n], higher means keep: the `keep` best stay, in image order
      mask     "score" and "count" int64 [batch]: the rest stay in the tensor but are attended to no more
      merge    "weights" [batch, keep, n] and "index" int64 [batch, keep], the token each result stands for; carries
               must already have the new length
    """

    site: str
    reads: tuple[str, ...] = ()
    rule: Rule
    how: How
    keep: int
    carries: tuple[str, ...] = ()


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


class Method(ABC):
    """A published way of reducing visual tokens: a frozen dataclass of hyper-parameters and a plan."""

    facts: ClassVar[MethodFacts]

    @abstractmethod
    def stages(self, geometry: Geometry, tokens: int, counts: Counts | None) -> tuple[Stage, ...]:
        """The stages that leave exactly `tokens` visual tokens; `counts` {site: keep} is what calibration froze."""

    def dynamic(self) -> "Method | None":
        """The per-image form whose counts calibration measures; None for a method that leaves no count open."""
        return None
