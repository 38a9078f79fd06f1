"""Density peaks: the recorded case, ties worked by hand, plain loops; and what recycling keeps and merges."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from twelve import TWELVE

from tokcarve.passes.choose import merge
from tokcarve.passes.clusters import density_peaks, recycling


def clusters(rows: Tensor, count: int) -> tuple[list[int], list[int]]:
    """Centres of the first image, and in which cluster each of its rows lies."""
    centres, joins = density_peaks(rows, count)
    assert (joins.sum(dim=1) == 1).all() and ((joins == 0) | (joins == 1)).all()
    return centres[0].tolist(), joins[0].argmax(dim=0).tolist()


def test_the_fixture_of_twelve() -> None:
    centres, joined = clusters(TWELVE, 3)
    assert centres == [2, 1, 9]
    assert joined == [2, 1, 0, 2, 0, 2, 2, 1, 0, 2, 1, 0]
    _, joins = density_peaks(TWELVE, 3)
    means = (joins @ TWELVE)[0, :, 0] / joins[0].sum(dim=1)
    torch.testing.assert_close(means, torch.tensor([0.295922, 0.448257, 0.029362]), atol=1e-6, rtol=0)


class TestByHand:
    def test_of_two_nearest_neighbours_the_earlier_is_denser(self) -> None:
        # on a line at 0, 1, 10 and 11: both pairs are as dense, so row 0 is densest, 1 lies next to it, and rows 2 and
        # 3 are the farther from a denser row: 9 and 1 away; mirrored, the same happens from the other end
        for line in ([0.0, 1.0, 10.0, 11.0], [11.0, 10.0, 1.0, 0.0]):
            assert clusters(torch.tensor(line).view(1, 4, 1), 2) == ([0, 2], [0, 0, 1, 1])

    def test_one_cluster_holds_all_and_stands_for_the_first(self) -> None:
        assert clusters(TWELVE, 1) == ([0], [0] * 12)

    def test_equal_rows(self) -> None:
        # no distance tells them apart: centres by index, each its own, the rest with the first
        assert clusters(torch.ones(1, 5, 3), 3) == ([0, 1, 2], [0, 1, 2, 0, 0])

    def test_a_row_between_two_centres_goes_to_the_clearer(self) -> None:
        # 0 and 8 twice each; row 2 lies at 4
        assert clusters(torch.tensor([0.0, 8.0, 4.0, 8.0, 0.0]).view(1, 5, 1), 2) == ([0, 1], [0, 1, 0, 1, 0])

    def test_a_common_offset_changes_nothing(self) -> None:
        # without centring, float32 would lose the differences beside 1e4
        rows = (torch.randn(1, 40, 16, generator=torch.Generator().manual_seed(0)) * 64).round() / 64
        assert clusters(rows + 1e4, 5) == clusters(rows, 5)


def by_loops(rows: Tensor, count: int) -> tuple[list[int], list[int]]:
    """One image, as the specification puts it, in float64."""
    at, ids = rows.double().tolist(), range(len(rows))
    far = [[math.dist(at[i], at[j]) / math.sqrt(rows.shape[1]) for j in ids] for i in ids]
    density = [math.exp(-sum(sorted(d * d for d in far[i])[:count]) / count) for i in ids]
    farthest = max(max(row) for row in far)
    score = list[float]()
    for i in ids:
        denser = [far[i][j] for j in ids if (density[j], -j) > (density[i], -i)]
        score.append(density[i] * min(denser, default=farthest))
    centres = sorted(ids, key=lambda i: (-score[i], i))[:count]
    joined = [min(range(count), key=lambda c: (far[i][centres[c]], c)) for i in ids]
    for place, centre in enumerate(centres):
        joined[centre] = place
    return centres, joined


@given(st.integers(0, 10_000), st.integers(3, 30), st.data())
def test_plain_loops_find_the_same(seed: int, n: int, data: st.DataObject) -> None:
    # random rows tie in nothing but the pairs that two clusters compare, which are ties in both
    rows = torch.randn(2, n, 6, generator=torch.Generator().manual_seed(seed))
    count = data.draw(st.integers(1, n))
    centres, joins = density_peaks(rows, count)
    for image in range(2):
        expected = by_loops(rows[image], count)
        assert (centres[image].tolist(), joins[image].argmax(dim=0).tolist()) == expected


def test_rounding_breaks_no_tie_of_two_neighbours() -> None:
    # products of so few rows may differ by a bit from one side to the other, and every one of these images has a tie
    rows = torch.randn(200, 5, 16, generator=torch.Generator().manual_seed(0))
    centres, _ = density_peaks(rows, 2)
    assert [found.tolist() for found in centres] == [by_loops(image, 2)[0] for image in rows]


class TestRecycling:
    score = torch.tensor([[0.5, 0.9, 0.1, 0.7, 0.6, 0.2, 0.7]])
    rows = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).view(1, 7, 1)

    def test_kept_in_order_then_clusters(self) -> None:
        made = recycling(self.score, self.rows, 2, 3, 1)
        # 1 and 3 stay (6 ties with 3); of the others 6, 4 and 0 are recycled, best first, around 6
        assert made["index"].tolist() == [[1, 3, 6]] and made["sources"].tolist() == [[6, 4, 0]]
        merged = merge(self.rows, made["weights"], sources=made["sources"], index=made["index"], own=made["own"])
        assert merged.flatten().tolist() == pytest.approx([1.0, 3.0, (6 + 4 + 0) / 3])

    def test_nothing_need_be_kept(self) -> None:
        made = recycling(self.score, self.rows, 0, 2, 1)
        assert made["index"].tolist() == [[1]]
        merged = merge(self.rows, made["weights"], sources=made["sources"], index=made["index"], own=made["own"])
        assert merged.flatten().tolist() == [2.0]
