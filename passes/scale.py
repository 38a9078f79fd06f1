"""Thresholds on scores, all scaled by one number, so that samples keep the tokens that were asked for in the mean."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from tokcarve.passes.decide import least_and_most
from tokcarve.passes.stage import Decision, Look, Method

__all__ = ["Scale"]

NEAR = 0.5
"""Tokens by which the mean may miss what was asked for: it rounds to that."""

ROUNDS = 32
"""Of counting, at most: where equal scores pass together, no scale may come near."""

MARGIN = 0.1
"""Of what is left between a scale that is too small and one that is too large: the next is no nearer to either."""


@dataclass(frozen=True)
class Scale(Decision):
    """Counts what passes behind `site` in the form that `form` makes of a scale, until its mean is `tokens`; `fix`
    makes the method of the scale. The more a scale, the less passes."""

    by_quantile: ClassVar[bool] = False
    site: str
    tokens: int
    form: Callable[[float], Method]
    fix: Callable[[float], Method]

    def counting(self, looks: Sequence[Look]) -> Method | None:
        """The form at the next scale to try."""
        tried = self._tried(looks)
        if len(tried) == ROUNDS or any(self._miss(mean) < NEAR for _, mean in tried):
            return None
        return self.form(self._next(tried))

    def settle(self, looks: Sequence[Look]) -> tuple[Method, dict[str, list[int | float]]]:
        """The scale whose mean is nearest, and how many tokens of each sample pass with it."""
        tried = self._tried(looks)
        best = min(range(len(tried)), key=lambda place: (self._miss(tried[place][1]), place))
        passing = [look.counted[best]["passing"][self.site] for look in looks]
        return self.fix(tried[best][0]), {"passing": least_and_most(passing)}

    def _miss(self, mean: float) -> float:
        return abs(mean - self.tokens)

    def _tried(self, looks: Sequence[Look]) -> list[tuple[float, float]]:
        """Every round's scale, which follows from the rounds before it, and its mean."""
        tried = list[tuple[float, float]]()
        for rounds in zip(*(look.counted for look in looks), strict=True):
            mean = math.fsum(one["passing"][self.site] for one in rounds) / len(looks)
            tried.append((self._next(tried), mean))
        return tried

    def _next(self, tried: Sequence[tuple[float, float]]) -> float:
        """1 at first; doubled or halved until the count lies between two; then between them, as on a line over the
        logarithm of the scale."""
        small = next(((scale, mean) for scale, mean in reversed(tried) if mean > self.tokens), None)
        large = next(((scale, mean) for scale, mean in reversed(tried) if mean <= self.tokens), None)
        if small is None or large is None:
            return 1.0 if not tried else 2 * small[0] if small is not None else tried[-1][0] / 2
        share = (small[1] - self.tokens) / (small[1] - large[1])
        share = min(max(share, MARGIN), 1 - MARGIN)
        return float(f"{small[0] * (large[0] / small[0]) ** share:.6g}")
