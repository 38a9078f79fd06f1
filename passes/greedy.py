"""Greedy picking: one token after the other, each by what it adds to those before; for DivPrune, ToDRE and CDPruner.

Loops have a constant count and are unrolled when a graph is exported: a step is a handful of operations on n numbers,
and all of them together cost less than the one product of all tokens with one another that they read.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tokcarve.passes.choose import LOWEST, best, take, unit

__all__ = ["SPENT", "apart", "loneliest", "spread", "volume"]

PICKED = -1e30  # below every other, and finite times any weight
SPENT = 3e-4  # far above what float32 leaves of a vector in the span, so that every runtime stops at the same one


def _same(n: int, like: Tensor) -> Tensor:
    order = torch.arange(n, device=like.device)
    return order.unsqueeze(1) == order


def apart(tokens: Float[Tensor, "batch n hidden"]) -> Float[Tensor, "batch n n"]:
    """Minus the cosine of any two tokens, in [-1, 1]; LOWEST between a token and itself."""
    units = unit(tokens)
    return torch.where(_same(tokens.shape[1], tokens), LOWEST, -units @ units.transpose(1, 2))


def loneliest(far: Float[Tensor, "batch n n"]) -> Int[Tensor, " batch"]:
    """The token whose nearest neighbour is farthest, `far` as `apart` gives it."""
    others = torch.where(_same(far.shape[1], far), -LOWEST, far)
    # both ways, so that rounding cannot tell two tokens apart that are each other's nearest
    return best(torch.minimum(others.amin(dim=1), others.amin(dim=2)))


def spread(
    far: Float[Tensor, "batch n n"],
    first: Int[Tensor, " batch"],
    count: int,
    together: Callable[[Tensor, Tensor], Tensor] = torch.minimum,
) -> Int[Tensor, "batch {count}"]:
    """`count` tokens in the order of picking: `first`, then the farthest from all before, `together` over them."""
    picked, distance = [first], take(far, first.unsqueeze(1)).squeeze(1)
    for _ in range(count - 1):
        picked.append(best(distance))
        distance = together(distance, take(far, picked[-1].unsqueeze(1)).squeeze(1))
    return torch.stack(picked, dim=1)


def volume(
    units: Float[Tensor, "batch n hidden"], weight: Float[Tensor, "batch n"], count: int
) -> tuple[Int[Tensor, "batch {count}"], Float[Tensor, "batch {count}"]]:
    """`count` vectors, each the one that adds most to the volume of those before, and what is new in it.

    `units` have length 1 and count as if `weight` long; new is the square of the sine to the span of those before.
    """
    cosines, new = units @ units.transpose(1, 2), (units * units).sum(dim=2)
    every = torch.arange(units.shape[1], device=units.device)
    basis, picked, fresh = torch.zeros_like(cosines[:, :1]), list[Tensor](), list[Tensor]()
    for done in range(count):
        picked.append(best(weight * weight * new).unsqueeze(1))
        fresh.append(take(new, picked[-1]))
        # what the earlier directions hold of the picked vector, and of every other along with it
        held = torch.gather(basis, 2, picked[-1].unsqueeze(1).expand(-1, 1 + done, -1)).transpose(1, 2) @ basis
        # rounding gives no direction: divided by its root, errors would grow from pick to pick
        height = torch.where(fresh[-1] > SPENT, fresh[-1], -LOWEST).sqrt()
        part = (take(cosines, picked[-1]) - held) / height.unsqueeze(1)
        basis = torch.cat([basis, part], dim=1)
        new = torch.where(every == picked[-1], PICKED, new - (part * part).squeeze(1))
    return torch.cat(picked, dim=1), torch.cat(fresh, dim=1)
