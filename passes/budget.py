"""Turns what a user asked for into a count of visual tokens; the only place where a ratio becomes an integer."""

from decimal import Decimal, InvalidOperation
from fractions import Fraction
from math import ceil

from tokcarve.passes.errors import BudgetError

__all__ = ["TILE", "count_for", "count_for_keep", "count_for_tokens"]

TILE = 8
"""Ratios are rounded up to a multiple of this many tokens, the width of a tensor-core tile."""


def count_for_keep(keep: float | int, total: int) -> int:
    """The count for a ratio in (0, 1] of `total` tokens: the next multiple of 8, never above `total`.

    The ratio is taken as it is written, not as its binary neighbour: 0.1 of 80 is 8, and 0.11, 0.22 and 0.33 of 576
    are 64, 128 and 192. Raises BudgetError for a ratio outside (0, 1].
    """
    try:
        ratio = Fraction(Decimal(str(keep)))
    except (InvalidOperation, ValueError, OverflowError):
        ratio = Fraction(0)
    if not 0 < ratio <= 1:
        raise BudgetError(f"keep={keep} is not a share of the {total} visual tokens; choose above 0 and at most 1")
    return min(total, TILE * ceil(ratio * total / TILE))


def count_for_tokens(tokens: int, total: int) -> int:
    """`tokens`, exactly, when it is within 1..`total`; raises BudgetError otherwise."""
    if isinstance(tokens, bool) or not isinstance(tokens, int) or not 1 <= tokens <= total:
        raise BudgetError(f"tokens={tokens} does not fit the {total} visual tokens of this model; choose 1..{total}")
    return tokens


def count_for(*, keep: float | int | None = None, tokens: int | None = None, total: int) -> int:
    """The count for exactly one of `keep` and `tokens`; raises BudgetError for both, none or a value out of range."""
    if keep is not None and tokens is not None:
        raise BudgetError(f"both keep={keep} and tokens={tokens} were given; give one of them")
    if tokens is not None:
        return count_for_tokens(tokens, total)
    if keep is not None:
        return count_for_keep(keep, total)
    raise BudgetError(f"no budget was given; give keep in (0, 1] or tokens in 1..{total}")
