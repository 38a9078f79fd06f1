"""How much of every row lies along the singular directions of all rows, for TokenCarve.

ONNX has no operator that gives eigenvectors. Here all pairs of directions turn at once, each towards the angle at which
the two would be orthogonal in the rows (a step of Jacobi's method), held back so that together they are one rotation.
A round is a few products of matrices. Rounds do not stop early, so the graph of them is static; once the directions are
found, further rounds move them by rounding alone. Where even that is dear, only the leading directions are turned out.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["along_leading", "along_singular", "along_singular_by_eigh", "singular_directions"]

REACH = 1.45  # norm of all angles of a step, up to which the series below stays near a rotation
LAST = 8  # rounds of a wide matrix that read its rows, and not their products, which are rounded once and for all
FAINT, FAINTEST = 1e-14, 1e-28  # squares of gaps too small to tell from rounding: in such products, and in fresh ones
LEAN = 0.1  # of the directions at first; little enough that they are nearly orthogonal
ROUNDING = 1e-5  # of the longest column
PRIME, FACTOR = 65521, 12345  # of the chirps: more than the tokens of any picture, and a step that mixes

Rows = Float[Tensor, "batch n width"]
Square = Float[Tensor, "batch r r"]


def along_leading(rows: Rows, rounds: int, directions: int) -> Float[Tensor, "batch n"]:
    """`along_singular` of what the rows are in `directions` directions, and an estimate of what they are outside.

    The directions span `directions` mixtures of the rows, so that they hold the leading ones nearly (Halko, Martinsson
    and Tropp, arXiv:0909.4061); a step of power iteration would bring them nearer, and faint ones into the noise of
    float32. Outside counts as if it lay along all other directions at random: a normal variable is sqrt(2 / pi) of its
    deviation long on average.
    """
    others = min(rows.shape[1:]) - directions
    if others <= 0:
        return along_singular(rows, rounds)
    mixtures = rows.transpose(1, 2) @ _chirps(rows.shape[1], directions, rows)
    inside = rows @ _orthonormal(mixtures, rounds)
    outside = (rows.square().sum(dim=2) - inside.square().sum(dim=2)).clamp_min(0).sqrt()
    return along_singular(inside, rounds) + math.sqrt(2 / math.pi * others) * outside


def along_singular(rows: Rows, rounds: int) -> Float[Tensor, "batch n"]:
    """Sum over k of |U_jk| sigma_k for every row j, where rows = U diag(sigma) V^T, after `rounds` rounds."""
    if rows.shape[2] <= rows.shape[1]:
        return (rows @ singular_directions(rows, rounds, rounds)).abs().sum(dim=2)
    columns = rows.transpose(1, 2)
    left = singular_directions(columns, rounds, min(LAST, rounds))
    sigma = (columns @ left).norm(dim=1, keepdim=True)
    total: Tensor = (left.abs() * sigma).sum(dim=2)
    return total


def along_singular_by_eigh(rows: Rows) -> Float[Tensor, "batch n"]:
    """The same from eigenvectors, in float64; only torch can run it."""
    rows = rows.double()
    if rows.shape[2] <= rows.shape[1]:
        right: Tensor = torch.linalg.eigh(rows.transpose(1, 2) @ rows).eigenvectors
        return (rows @ right).abs().sum(dim=2).float()
    squares, left = torch.linalg.eigh(rows @ rows.transpose(1, 2))
    total: Tensor = (left.abs() * squares.clamp_min(0).sqrt().unsqueeze(1)).sum(dim=2)
    return total.float()


def singular_directions(matrix: Float[Tensor, "batch m r"], rounds: int, fresh: int) -> Square:
    """The right singular vectors of a matrix with r <= m, one per column, in any order.

    The last `fresh` of the rounds multiply the matrix itself, which keeps faint directions apart.
    """
    side = torch.arange(matrix.shape[2], device=matrix.device)
    same = (side.unsqueeze(1) == side).float()
    # equal directions pull on one another alike and would stay where they are: begin a little off
    lean = LEAN / matrix.shape[2] * ((side.unsqueeze(1) > side).float() - (side.unsqueeze(1) < side).float())
    longest = matrix.norm(dim=1, keepdim=True).amax(dim=2, keepdim=True)
    matrix = matrix / longest.clamp_min(torch.finfo(torch.float32).tiny)
    stored = matrix.transpose(1, 2) @ matrix
    basis = (same + lean).expand_as(stored)
    for done in range(rounds):
        if done < rounds - fresh:
            products, faint = basis.transpose(1, 2) @ (stored @ basis), FAINT
        else:
            turned = matrix @ basis
            products, faint = turned.transpose(1, 2) @ turned, FAINTEST
        basis = basis @ _turn(products, same, faint)
        # back to orthogonal columns, from which a step departs a little
        basis = basis @ (1.5 * same - 0.5 * basis.transpose(1, 2) @ basis)
    return basis


def _orthonormal(columns: Float[Tensor, "batch m r"], rounds: int) -> Float[Tensor, "batch m r"]:
    """Columns that span the same, orthogonal and of length 1; those made of rounding alone stay short."""
    turned = columns @ singular_directions(columns, rounds, min(LAST, rounds))
    length = turned.norm(dim=1, keepdim=True)
    least = (ROUNDING * length.amax(dim=2, keepdim=True)).clamp_min(torch.finfo(torch.float32).tiny)
    return turned / torch.maximum(length, least)


def _chirps(n: int, r: int, like: Tensor) -> Float[Tensor, "n r"]:
    """Columns that no picture resembles: cosines of ever faster phase, the same in every runtime and on every run."""
    row, column = (torch.arange(1, side + 1, device=like.device) for side in (n, r))
    turns = (row * row).unsqueeze(1) * column * FACTOR % PRIME
    return torch.cos(turns.float() * (2 * math.pi / PRIME))


def _turn(products: Square, same: Float[Tensor, "r r"], faint: float) -> Square:
    """The rotation of one round, near enough to orthogonal, for directions with these products."""
    square = (products * same).sum(dim=1, keepdim=True)
    gap = square - square.transpose(1, 2)
    angle = products * gap / (gap * gap + products * products + faint)
    # directions that still turn far hold back those they turn with, and not all
    calm = (angle * angle).sum(dim=2, keepdim=True).clamp_min(1) ** -0.25
    angle = angle * (calm * calm.transpose(1, 2))
    twice = angle @ angle
    fourth = twice @ twice
    held = ((fourth * fourth).sum(dim=(1, 2), keepdim=True) / (2 * REACH**8)).clamp_min(1) ** -0.125
    angle = held * angle
    return same + angle @ (same + angle / 2 + held * held / 6 * twice)
