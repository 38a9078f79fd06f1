"""Merging pairs: published schedules, the specification's fixture, and a plain loop over every image."""

from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from models import build
from torch import Tensor
from twelve import SEEN, TWELVE

from tokcarve.passes import choose, families
from tokcarve.passes.bipartite import Order, alike, merge_pairs, merging_stages, removals
from tokcarve.passes.errors import MethodError
from tokcarve.passes.stage import Carry, Outcome

SIZES = st.tuples(st.integers(1, 700), st.integers(1, 30))  # tokens, layers


def least(total: int, layers: int) -> int:
    """What is left when every layer removes half."""
    for _ in range(layers):
        total -= total // 2
    return total


KEYS = TWELVE.unsqueeze(1)  # one head; row 0 is [CLS]


class TestRemovals:
    @pytest.mark.parametrize(
        ("tokens", "plan"),
        [
            (192, [17] * 16 + [16] * 7),
            (128, [20] * 11 + [19] * 12),
            (64, [23] * 6 + [22] * 17),
            (32, [24] * 15 + [23] * 8),
            (575, [1] + [0] * 22),
        ],
    )
    def test_published_schedules(self, tokens: int, plan: list[int]) -> None:
        assert removals(576, tokens, 23, "ToMe") == plan

    def test_by_hand_where_halving_binds(self) -> None:
        # 20 -> 15 -> 10 -> 5 -> 3: the fourth layer has five tokens left and can remove only two
        assert removals(20, 3, 4, "ToMe") == [5, 5, 5, 2]
        assert removals(16, 1, 4, "ToMe") == [8, 4, 2, 1]

    @given(SIZES, st.data())
    def test_every_reachable_count_is_met(self, sizes: tuple[int, int], data: st.DataObject) -> None:
        total, layers = sizes
        tokens = data.draw(st.integers(least(total, layers), total))
        plan, left = removals(total, tokens, layers, "ToMe"), total
        assert len(plan) == layers and sum(plan) == total - tokens and min(plan) >= 0
        assert all(first >= second for first, second in pairwise(plan))
        for remove in plan:
            assert remove <= left // 2
            left -= remove

    @given(SIZES, st.data())
    def test_no_layer_removes_more_than_it_must(self, sizes: tuple[int, int], data: st.DataObject) -> None:
        total, layers = sizes
        tokens = data.draw(st.integers(least(total, layers), total))
        plan, left = removals(total, tokens, layers, "ToMe"), total
        assume(max(plan))
        for _ in range(layers):
            left -= min(max(plan) - 1, left // 2)
        assert left > tokens, "a smaller largest step does not get there"
        if total >= (layers + 1) * max(plan):
            assert max(plan) - min(plan) <= 1, "even where halving does not bind"

    @given(SIZES)
    def test_less_than_halving_reaches_is_refused(self, sizes: tuple[int, int]) -> None:
        total, layers = sizes
        bound = least(total, layers)
        assume(bound > 1)
        message = f"ToMe merges .* the {layers} vision layers .* leaves {bound} of {total}; {bound - 1} .* keep {bound}"
        with pytest.raises(MethodError, match=message):
            removals(total, bound - 1, layers, "ToMe")


def rows_of(made: Outcome, rows: Tensor, prefix: int) -> Tensor:
    """What the merge makes of `rows` [batch, prefix + n, hidden]."""
    sources, index, own = (made[name] for name in ("sources", "index", "own"))
    return choose.merge(rows, made["weights"], prefix, sources=sources, index=index, own=own)


def merged(keys: Tensor, worth: Tensor | float, remove: int) -> tuple[Outcome, Tensor]:
    """One merge behind [CLS], and the rows that it makes of `keys` of one head, [CLS] first."""
    made = merge_pairs(alike(keys, 1), worth, {}, remove, 1)
    return made, rows_of(made, keys[:, 0], 1)


def pairs(made: Outcome) -> dict[int, int]:
    """{source row: sink row} of the first image, [CLS] counted."""
    into = made["weights"][0].argmax(dim=0)
    return {int(s) + 1: int(made["index"][0, k]) + 1 for s, k in zip(made["sources"][0], into, strict=True)}


PLAIN = [0.891818, -0.265685, -0.799947, 1.052726, 0.117208, -0.576595, -0.521887, 0.514326, 0.866234]
GUARDED = [0.891818, -0.265685, -0.283094, 1.052726, 0.117208, -0.576595, -0.76068, -0.142811, 0.866234]


class TestFixture:
    @pytest.mark.parametrize(
        ("strength", "merges", "stays", "sizes", "column"),
        [
            (0, {8: 7, 2: 11, 10: 1}, [4, 6], [1, 1, 2, 1, 1, 2, 1, 2], PLAIN),
            (1, {8: 7, 2: 11, 10: 1}, [4, 6], [1, 1, 2, 1, 1, 2, 1, 2], PLAIN),
            (150, {2: 11, 6: 9, 10: 1}, [4, 8], [1, 1, 2, 1, 1, 1, 2, 2], GUARDED),
        ],
    )
    def test_what_merges_into_what(
        self, strength: int, merges: dict[int, int], stays: list[int], sizes: list[int], column: list[float]
    ) -> None:
        made, rows = merged(KEYS, strength * SEEN[:, 2::2], 3)
        assert pairs(made) == merges
        assert (made["index"][0] + 1).tolist() == [*stays, 1, 3, 5, 7, 9, 11]
        assert made["size"][0].tolist() == sizes
        torch.testing.assert_close(rows[0, :, 0], torch.tensor(column), atol=2e-6, rtol=0)

    @pytest.mark.parametrize("remove", [1, 2, 3, 4, 5])
    def test_sizes_count_every_patch_and_cls_never_merges(self, remove: int) -> None:
        made, rows = merged(KEYS, 0.0, remove)
        assert made["size"].sum() == 11 and rows.shape == (1, 12 - remove, 6)
        assert torch.equal(rows[0, 0], TWELVE[0, 0])
        weights = made["weights"].sum(dim=2) + made["own"]
        torch.testing.assert_close(weights, torch.ones_like(weights), atol=1e-6, rtol=0)
        torch.testing.assert_close(made["bias"], made["size"].log(), atol=0, rtol=0)

    def test_the_order_of_heads_does_not_matter(self) -> None:
        keys = torch.randn(2, 4, 41, 8, generator=torch.Generator().manual_seed(0))
        one, other = (merge_pairs(alike(keys[:, heads], 1), 0.0, {}, 9, 1) for heads in ([0, 1, 2, 3], [2, 0, 3, 1]))
        assert all(torch.equal(one[name], other[name]) for name in one)

    @given(st.floats(0.01, 100))
    def test_the_length_of_keys_does_not_matter(self, scale: float) -> None:
        torch.testing.assert_close(alike(scale * KEYS, 1), alike(KEYS, 1), atol=1e-6, rtol=0)
        assert float(alike(KEYS, 1).abs().max()) <= 1 + 1e-6

    def test_keys_of_length_zero_are_alike_to_nothing(self) -> None:
        assert torch.equal(alike(torch.zeros(1, 2, 9, 3), 1), torch.zeros(1, 4, 4))


def looped(similar: Tensor, worth: Tensor, carry: Carry, remove: int, prefix: int) -> dict[str, list[list[float]]]:
    """The same merge, one image and one token at a time; equal scores go to the lower index."""
    out: dict[str, list[list[float]]] = {name: [] for name in ("index", "sources", "size", "origin", "sum")}
    for image in range(similar.shape[0]):
        table, values = similar[image].tolist(), worth[image].tolist()
        total = len(table) + len(table[0])
        going, taking = list(range(prefix, total, 2)), list(range(1 - prefix, total, 2))
        best = [max(row) for row in table]
        ranked = sorted(range(len(going)), key=lambda a: (values[a] - best[a], a))
        gone = sorted(ranked[:remove])
        size, held = carry["size"][image].tolist(), [float(t) for t in range(total)]
        held = [s * t for s, t in zip(size, held, strict=True)]
        for a in gone:
            sink = taking[table[a].index(best[a])]
            size[sink] += size[going[a]]
            held[sink] += held[going[a]]
        index = [going[a] for a in range(len(going)) if a not in gone] + taking
        out["index"].append(list(index))
        out["sources"].append([going[a] for a in gone])
        out["size"].append([size[t] for t in index])
        out["sum"].append([held[t] for t in index])
        out["origin"].append([int(carry["origin"][image, t]) for t in index])
    return out


@pytest.mark.parametrize("prefix", [0, 1])
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("levels", [2, 5, 10**6])
def test_the_same_as_a_loop(prefix: int, seed: int, levels: int) -> None:
    """Few levels make many ties; sizes are whole numbers, so that sums are exact."""
    draw = torch.Generator().manual_seed(seed)
    total = 20 + seed
    a = len(range(prefix, total, 2))
    similar = torch.randint(0, levels, (3, a, total - a), generator=draw).float() / 4
    worth = torch.randint(0, 3, (3, a), generator=draw).float() / 4
    size = torch.randint(1, 6, (3, total), generator=draw).float()
    origin = torch.stack([torch.randperm(99, generator=draw)[:total] for _ in range(3)])
    for remove in (1, 4, total // 2):
        carry = {"size": size, "origin": origin}
        made = merge_pairs(similar, worth, carry, remove, prefix)
        expected = looped(similar, worth, carry, remove, prefix)
        for name in ("index", "sources", "size", "origin"):
            assert made[name].tolist() == expected[name], name
        places = torch.arange(total).float().expand(3, -1).unsqueeze(2)
        held = rows_of(made, places, 0).squeeze(2) * made["size"]
        torch.testing.assert_close(held, torch.tensor(expected["sum"]), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("order", ["raster", "published"])
@pytest.mark.parametrize("proportional", [True, False])
def test_one_stage_in_every_layer_that_merges(order: Order, proportional: bool) -> None:
    geometry = families.capture(build()).geometry
    stages = merging_stages(geometry, [20, 0, 12, 1, 0], ("keys",), lambda signals: 0.0, order, proportional)
    assert [(s.site, s.keep) for s in stages] == [
        ("vision.layers.0.attention", 44),
        ("vision.layers.2.attention", 32),
        ("vision.layers.3.attention", 31),
    ]
    assert {(s.how, s.reads, s.carries, s.biases) for s in stages} == {
        ("merge", ("keys",), ("size", "origin"), proportional)
    }
    keys = torch.randn(2, 4, 33, 8, generator=torch.Generator().manual_seed(0))
    shuffled = torch.stack([torch.randperm(64, generator=torch.Generator().manual_seed(s))[:32] for s in (1, 2)])
    carry = {"size": torch.ones(2, 32), "origin": shuffled}
    plain = merge_pairs(alike(keys, 1), 0.0, carry, 1, 1)
    last = stages[-1].rule({"keys": keys}, carry)
    rising = plain["origin"].argsort(dim=1) if order == "raster" else torch.arange(31).expand(2, -1)
    for name in ("index", "origin", "size", "own", "bias"):
        assert torch.equal(last[name], plain[name].gather(1, rising)), name
    assert torch.equal(last["sources"], plain["sources"])
    assert torch.equal(last["weights"].squeeze(2), plain["weights"].squeeze(2).gather(1, rising))
