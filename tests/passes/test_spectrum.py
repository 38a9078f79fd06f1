"""Singular directions by rounds of rotations: against float64, whatever the spectrum, and what must not change them."""

import pytest
import torch
from torch import Tensor

from tokcarve.passes.spectrum import along_leading, along_singular, along_singular_by_eigh, singular_directions

ROUNDS = 40


def drawn(n: int, width: int, falling: float, seed: int = 0) -> Tensor:
    """[2, n, width] with singular values k ** -falling, its rows of unequal length."""
    draw = torch.Generator().manual_seed(seed)
    least = min(n, width)
    left, right = (torch.linalg.qr(torch.randn(2, side, least, generator=draw)).Q for side in (n, width))
    rows = left * torch.arange(1.0, least + 1) ** -falling @ right.transpose(1, 2)
    return rows * (1 + torch.rand(2, n, 1, generator=draw))


def expected(rows: Tensor) -> Tensor:
    left, sigma, _ = torch.linalg.svd(rows.double(), full_matrices=False)
    return (left.abs() * sigma.unsqueeze(1)).sum(dim=2)


@pytest.mark.parametrize(("n", "width"), [(96, 32), (32, 96), (64, 64), (5, 9), (9, 5), (1, 7), (7, 1)])
@pytest.mark.parametrize("falling", [0.5, 1.0, 2.0])
def test_after_all_rounds_only_rounding_is_left(n: int, width: int, falling: float) -> None:
    rows = drawn(n, width, falling)
    torch.testing.assert_close(along_singular(rows, ROUNDS).double(), expected(rows), atol=0, rtol=3e-6)
    torch.testing.assert_close(along_singular_by_eigh(rows).double(), expected(rows), atol=0, rtol=3e-6)


def test_rounds_matter() -> None:
    rows = drawn(96, 32, 1.0)
    errors = [float((along_singular(rows, rounds).double() / expected(rows) - 1).abs().max()) for rounds in (0, 8, 40)]
    assert errors[0] > 0.5 and 0.5 > errors[1] > 0.02 and errors[2] < 3e-6


@pytest.mark.parametrize(("n", "width"), [(40, 16), (16, 40)])
def test_the_directions_are_orthogonal_and_lengths_stay(n: int, width: int) -> None:
    matrix = drawn(n, width, 1.0)
    matrix = matrix if n >= width else matrix.transpose(1, 2)
    basis = singular_directions(matrix, ROUNDS, ROUNDS)
    torch.testing.assert_close(basis.transpose(1, 2) @ basis, torch.eye(16).expand(2, -1, -1), atol=2e-6, rtol=0)
    # along them the row lengths of the matrix are what they were
    torch.testing.assert_close((matrix @ basis).norm(dim=2), matrix.norm(dim=2), atol=0, rtol=1e-5)


def test_a_few_large_directions_do_not_hold_the_others_back() -> None:
    draw = torch.Generator().manual_seed(0)
    large = torch.randn(2, 96, 4, generator=draw) @ torch.randn(2, 4, 48, generator=draw)
    rows = large + 0.02 * torch.randn(2, 96, 48, generator=draw)
    torch.testing.assert_close(along_singular(rows, 30).double(), expected(rows), atol=0, rtol=1e-5)


def test_turning_all_rows_changes_nothing() -> None:
    rows = drawn(24, 12, 1.0)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(1))).Q
    for other in (rows @ turn, rows * torch.tensor([1.0, -1.0] * 6), 1e6 * rows, 1e-6 * rows):
        scale = other.norm() / rows.norm()
        torch.testing.assert_close(along_singular(other, ROUNDS) / scale, along_singular(rows, ROUNDS))


@pytest.mark.parametrize(
    "rows",
    [
        torch.zeros(1, 6, 4),
        torch.ones(2, 6, 4),
        torch.ones(1, 4, 6),
        drawn(20, 9, 1.0).repeat(1, 2, 1),
        drawn(9, 20, 1.0).repeat(1, 2, 1),
        drawn(30, 6, 1.0).repeat(1, 1, 2),
    ],
)
def test_equal_rows_and_columns_do_not_stop_each_other(rows: Tensor) -> None:
    torch.testing.assert_close(along_singular(rows, ROUNDS).double(), expected(rows), atol=1e-6, rtol=1e-5)


def test_a_batch_is_a_loop() -> None:
    rows = drawn(24, 12, 1.0)
    alone = torch.cat([along_singular(one.unsqueeze(0), ROUNDS) for one in rows])
    torch.testing.assert_close(along_singular(rows, ROUNDS), alone, atol=0, rtol=3e-6)


def likeness(one: Tensor, other: Tensor) -> float:
    """Spearman's rank correlation, least of the batch."""
    ranks = (values.double().argsort(dim=1).argsort(dim=1).double() for values in (one, other))
    return min(float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(*ranks, strict=True))


@pytest.mark.parametrize(("falling", "least"), [(0.25, 0.92), (0.5, 0.95), (1.0, 0.97)])
def test_leading_directions_rank_nearly_as_all_do(falling: float, least: float) -> None:
    rows = drawn(288, 400, falling)
    rows = rows + 2 * rows.norm(dim=2).mean() * torch.nn.functional.normalize(torch.ones(400), dim=0)
    wanted = expected(rows)
    found = along_leading(rows, ROUNDS, 64)
    assert likeness(found, wanted) > least > 0.04 + likeness(rows.norm(dim=2), wanted)
    assert float((found / wanted - 1).abs().mean()) < 0.15


@pytest.mark.parametrize(("n", "width"), [(96, 32), (32, 96)])
def test_as_many_leading_directions_as_there_are_is_all(n: int, width: int) -> None:
    rows = drawn(n, width, 1.0)
    assert torch.equal(along_leading(rows, ROUNDS, 32), along_singular(rows, ROUNDS))


@pytest.mark.parametrize("rank", [1, 5])
def test_rows_of_few_directions_need_no_more(rank: int) -> None:
    rows = drawn(60, rank, 0.5) @ torch.randn(rank, 50, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(along_leading(rows, ROUNDS, 16).double(), expected(rows), atol=0, rtol=5e-3)
