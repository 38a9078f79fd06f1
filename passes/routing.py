"""Which budget of a set an image gets: the least predicted loss with a price on every token.

Predicted losses are float64 [images, budgets] in nats, one column per count of `tokens`, which rise. Nothing here
needs torch: a device routes by it, too.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["Losses", "chosen", "mean_tokens", "price_for"]

Losses = NDArray[np.float64]


def chosen(losses: Losses, tokens: Sequence[int], price: float) -> NDArray[np.int64]:
    """The column int64 [images] that each image gets; of equals the one with fewer tokens."""
    best: NDArray[np.int64] = np.argmin(losses + price * np.asarray(tokens, np.float64), axis=1)
    return best


def mean_tokens(losses: Losses, tokens: Sequence[int], price: float) -> float:
    """What the images get on average."""
    return float(np.asarray(tokens, np.float64)[chosen(losses, tokens, price)].mean())


def price_for(losses: Losses, tokens: Sequence[int], target: float) -> float:
    """The least price, in nats per token, at which the images get `target` tokens on average or fewer.

    It lies half-way between two prices at which some image changes its budget, so that rounding decides nothing.
    """
    changes = _changes(losses, tokens)
    prices = [changes[0] - 1, *((changes[1:] + changes[:-1]) / 2), changes[-1] + 1]
    low, high = 0, len(prices) - 1
    while low < high:
        middle = (low + high) // 2
        if mean_tokens(losses, tokens, prices[middle]) <= target:
            high = middle
        else:
            low = middle + 1
    return float(prices[low])


def _changes(losses: Losses, tokens: Sequence[int]) -> NDArray[np.float64]:
    """Every price, rising, at which two budgets are worth the same to an image."""
    pairs = [(less, more) for more in range(len(tokens)) for less in range(more)]
    return np.unique([(losses[:, i] - losses[:, j]) / (tokens[j] - tokens[i]) for i, j in pairs])
