"""DivPrune: cases worked by hand, a plain loop, copies and ties, and the recorded selections."""

import pytest
import torch
from goldens_support import IMAGES, Recorded, carved, check_answers, golden_graphs, golden_inputs
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from twelve import TWELVE

from tokcarve.passes.choose import unit
from tokcarve.passes.greedy import apart, loneliest, spread
from tokcarve.passes.methods.divprune import DivPrune
from tokcarve.passes.methods.todre import ToDRE

BUDGETS = (192, 128, 64, 32)


def order(tokens: Tensor, count: int) -> Tensor:
    far = apart(tokens)
    return spread(far, loneliest(far), count)


def by_loops(tokens: Tensor, count: int) -> list[int]:
    """One image [n, hidden] in float64, from the definition."""
    rows = (tokens.double() / tokens.double().norm(dim=1, keepdim=True)).tolist()
    # Python's own sum: the same both ways round
    far = [[1 - sum(x * y for x, y in zip(a, b, strict=True)) for b in rows] for a in rows]
    ids = range(len(far))
    picked = [max(ids, key=lambda i: (min(far[i][j] for j in ids if j != i), -i))]
    while len(picked) < count:
        rest = [i for i in ids if i not in picked]
        picked.append(max(rest, key=lambda i: (min(far[i][j] for j in picked), -i)))
    return picked


class TestByHand:
    def test_twelve_rows(self) -> None:
        # 3 and 4 are each other's nearest and tie for first place
        assert order(TWELVE, 5).tolist() == [[3, 4, 0, 1, 8]]

    def test_directions_in_a_plane(self) -> None:
        # nearest neighbours at 10, 10, 20, 60, 120 degrees: the last is first, then the farthest from what is there
        angles = torch.deg2rad(torch.tensor([0.0, 10.0, 30.0, 90.0, 210.0]))
        assert order(torch.stack([angles.cos(), angles.sin()], 1).unsqueeze(0), 5).tolist() == [[4, 2, 3, 0, 1]]

    def test_all_is_all(self) -> None:
        assert sorted(order(TWELVE, 12)[0].tolist()) == list(range(12))


@given(st.integers(0, 10_000), st.integers(1, 9))
def test_a_plain_loop_picks_the_same(seed: int, count: int) -> None:
    tokens = torch.randn(2, 9, 5, generator=torch.Generator().manual_seed(seed))
    assert order(tokens, count).tolist() == [by_loops(image, count) for image in tokens]


def test_lengths_do_not_matter() -> None:
    tokens = torch.randn(1, 40, 8, generator=torch.Generator().manual_seed(1))
    # powers of two scale without rounding
    scales = 2.0 ** torch.randint(-8, 9, (1, 40, 1), generator=torch.Generator().manual_seed(2))
    assert torch.equal(order(scales * tokens, 20), order(tokens, 20))


def test_more_tokens_go_on_where_fewer_stopped() -> None:
    tokens = torch.randn(1, 40, 8, generator=torch.Generator().manual_seed(3))
    assert torch.equal(order(tokens, 39)[:, :12], order(tokens, 12))


@pytest.mark.parametrize("tilt", [-1e-7, 0.0, 1e-7])
def test_first_place_does_not_hang_on_rounding(tilt: float) -> None:
    # 1 and 2 are each other's nearest, at 0.5; a product that rounds the two ways apart must not choose between them
    far = torch.tensor([[-9.0, 0.9, 0.8, 0.1], [0.9, -9.0, 0.5, 0.8], [0.8, 0.5, -9.0, 0.7], [0.1, 0.8, 0.7, -9.0]])
    far[1, 2] += tilt
    assert loneliest(far.unsqueeze(0)).tolist() == [1]


def test_copies_are_never_picked_twice() -> None:
    three = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.5]])
    tokens = three[torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])].unsqueeze(0)
    picked = order(tokens, 7)[0].tolist()
    assert len(set(picked)) == 7
    assert sorted(i % 3 for i in picked[:3]) == [0, 1, 2], "one of each before any copy"


def test_a_token_of_zeros_is_served() -> None:
    tokens = torch.cat([torch.zeros(1, 1, 6), TWELVE], dim=1)
    assert unit(tokens).isfinite().all()
    assert len(set(order(tokens, 13)[0].tolist())) == 13


@pytest.fixture(scope="module")
def golden() -> Recorded:
    return Recorded("divprune")


@pytest.mark.parametrize("tokens", BUDGETS)
def test_it_keeps_what_its_authors_code_keeps(golden: Recorded, tokens: int) -> None:
    budget = str(tokens)
    assert all(golden.trusted(i, budget) for i in IMAGES)
    with torch.no_grad():
        features, kept = carved(DivPrune(), tokens).graphs.vision(golden_inputs()[0])
    assert torch.equal(kept["connector"], golden.stack(budget, "kept").long())
    check_answers(features, golden, budget)


@pytest.mark.parametrize("tokens", BUDGETS)
def test_it_picks_in_the_same_order_for_the_same_reasons(golden: Recorded, tokens: int) -> None:
    with torch.no_grad():
        features, _ = golden_graphs().vision(golden_inputs()[0])
    picked, far = order(features, tokens), apart(features)
    assert torch.equal(picked, golden.stack(str(tokens), "selection_order").long())
    for i in IMAGES:
        rows = far[i][picked[i]]
        value = [rows[0][torch.arange(576) != picked[i, 0]].amin()]
        value += [rows[:t, picked[i, t]].amin() for t in range(1, tokens)]
        recorded = torch.from_numpy(golden.get(i, str(tokens), "maxmin_values"))
        torch.testing.assert_close(1 + torch.stack(value), recorded, atol=2e-6, rtol=0)


def test_the_comparison_has_power(golden: Recorded) -> None:
    """One token more or less, another first token, another sum, unprojected tokens: each gives something else."""
    pixels = golden_inputs()[0]
    recorded = golden.stack("64", "kept").long()
    with torch.no_grad():
        features, _ = golden_graphs().vision(pixels)
        _, other = carved(ToDRE(), 64).graphs.vision(pixels)
        _, fewer = carved(DivPrune(), 63).graphs.vision(pixels)
    far = apart(features)
    elsewhere = spread(far, torch.zeros(4, dtype=torch.long), 64).sort(dim=1).values
    for i in IMAGES:
        assert set(fewer["connector"][i].tolist()) < set(recorded[i].tolist())
        assert not torch.equal(other["connector"][i], recorded[i])
        assert not torch.equal(elsewhere[i], recorded[i])
