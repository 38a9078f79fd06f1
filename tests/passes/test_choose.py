"""Choosing: exactly `keep`, in image order, ties to the lower index, whatever the scores are, wherever it runs."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tokcarve.passes.choose import alive_after, merge, order, take, top_in_order

# few distinct values, so that ties are the rule; and every special value
VALUES = st.sampled_from([0.0, -0.0, 0.5, 0.25, -1.0, 1e-30, 3e38, -3e38, math.inf, -math.inf, math.nan])
SMOOTH = st.floats(-1e3, 1e3, width=32)
SCORES = st.one_of(st.lists(VALUES, min_size=1, max_size=40), st.lists(SMOOTH, min_size=1, max_size=40))


def plain(scores: list[float], keep: int, alive: list[bool] | None = None) -> list[int]:
    """The same choice in plain Python: NaN is the lowest, dead tokens come last, sort by (-score, index)."""
    lowest = torch.finfo(torch.float32).min / 2

    def value(i: int) -> float:
        if alive is not None and not alive[i]:
            return -math.inf
        return lowest if math.isnan(scores[i]) else min(max(scores[i], lowest), -lowest)

    ranked = sorted(range(len(scores)), key=lambda i: (-value(i), i))
    return sorted(ranked[:keep])


@given(scores=SCORES, data=st.data())
def test_the_choice_is_that_of_a_stable_sort(scores: list[float], data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, len(scores)))
    chosen = top_in_order(torch.tensor([scores]), keep)
    assert chosen.dtype == torch.int64
    assert chosen[0].tolist() == plain(scores, keep)


@given(scores=SCORES, data=st.data())
def test_the_choice_is_exact_ascending_and_unique(scores: list[float], data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, len(scores)))
    alive = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)))
    chosen = top_in_order(torch.tensor([scores]), keep, torch.tensor([alive]))[0].tolist()
    assert len(chosen) == keep
    assert all(a < b for a, b in zip(chosen, chosen[1:], strict=False))
    assert 0 <= chosen[0] and chosen[-1] < len(scores)


@given(scores=SCORES, data=st.data())
def test_dead_tokens_are_never_chosen_while_enough_are_alive(scores: list[float], data: st.DataObject) -> None:
    alive = data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores)).filter(any))
    keep = data.draw(st.integers(1, sum(alive)))
    chosen = top_in_order(torch.tensor([scores]), keep, torch.tensor([alive]))[0].tolist()
    assert all(alive[i] for i in chosen)
    assert chosen == plain(scores, keep, alive)


@given(scores=SCORES)
def test_keeping_all_is_the_identity(scores: list[float]) -> None:
    assert top_in_order(torch.tensor([scores]), len(scores))[0].tolist() == list(range(len(scores)))


@given(st.integers(1, 12), st.integers(0, 11))
def test_constant_scores_keep_the_first(tokens: int, less: int) -> None:
    keep = max(1, tokens - less)
    for value in (0.0, 7.5, math.nan, math.inf, -math.inf):
        assert top_in_order(torch.full((2, tokens), value), keep).tolist() == [list(range(keep))] * 2


@given(st.lists(st.floats(-6e4, 6e4, width=16), min_size=1, max_size=30), st.data())
def test_half_precision_is_chosen_like_its_exact_values(scores: list[float], data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, len(scores)))
    assert top_in_order(torch.tensor([scores], dtype=torch.float16), keep)[0].tolist() == plain(scores, keep)


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 30))
def test_a_batch_is_a_loop(seed: int, batch: int, tokens: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    score = torch.randint(0, 4, (batch, tokens), generator=generator).float()
    keep = 1 + seed % tokens
    rows = [top_in_order(score[i : i + 1], keep) for i in range(batch)]
    assert torch.equal(top_in_order(score, keep), torch.cat(rows))


@given(st.permutations(list(range(17))), st.integers(1, 17))
def test_distinct_scores_are_chosen_wherever_they_stand(places: list[int], keep: int) -> None:
    # the score of a token is its value in `places`: the chosen values do not depend on the permutation
    chosen = top_in_order(torch.tensor([places]).float(), keep)[0].tolist()
    assert sorted(places[i] for i in chosen) == list(range(17 - keep, 17))


@given(st.lists(st.lists(VALUES, min_size=9, max_size=9), min_size=1, max_size=4), st.data())
def test_every_image_keeps_its_own_count(scores: list[list[float]], data: st.DataObject) -> None:
    alive, counts = [], []
    for _ in scores:
        row = data.draw(st.lists(st.booleans(), min_size=9, max_size=9).filter(any))
        alive.append(row)
        counts.append(data.draw(st.integers(1, sum(row))))
    score = torch.tensor(scores)
    after = alive_after(score, torch.tensor(counts), torch.tensor(alive))
    for i, count in enumerate(counts):
        assert after[i].nonzero().flatten().tolist() == plain(scores[i], count, alive[i])


def test_alive_after_by_hand() -> None:
    score = torch.tensor([[0.1, 0.9, 0.5, 0.5, 0.7], [0.2, 0.2, 0.2, 0.2, 0.2]])
    alive = torch.tensor([[True, False, True, True, True], [False, True, True, True, True]])
    after = alive_after(score, torch.tensor([2, 3]), alive)
    assert after.tolist() == [[False, False, True, False, True], [False, True, True, True, False]]
    assert torch.equal(alive_after(score, alive.sum(dim=1), alive), alive)


def test_take_leaves_the_prefix_first() -> None:
    rows = torch.arange(12.0).view(1, 6, 2)
    index = torch.tensor([[1, 3]])
    assert take(rows, index)[0, :, 0].tolist() == [2, 6]
    assert take(rows, index, prefix=1)[0, :, 0].tolist() == [0, 4, 8]
    assert take(torch.tensor([[5, 6, 7, 8]]), index).tolist() == [[6, 8]]


def test_merge_by_hand_keeps_the_dtype_and_the_prefix() -> None:
    rows = torch.tensor([[[100.0], [1.0], [2.0], [4.0]]], dtype=torch.float16)
    weights = torch.tensor([[[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]])
    merged = merge(rows, weights, prefix=1)
    assert merged.dtype == torch.float16
    assert merged.flatten().tolist() == [100.0, 1.5, 4.0]


def test_order_puts_the_lower_index_first_among_equals() -> None:
    assert order(torch.tensor([[0.5, 1.0, 0.5, 1.0, 0.0]])).tolist() == [[1, 3, 0, 2, 4]]


class _Choose(nn.Module):
    def __init__(self, choose: Callable[..., Tensor], *fixed: int) -> None:
        super().__init__()
        self.choose, self.fixed = choose, fixed

    def forward(self, score: Tensor, *rest: Tensor) -> Tensor:
        return self.choose(score, *self.fixed, *rest)


def session(module: nn.Module, inputs: tuple[Tensor, ...], path: Path) -> Callable[..., Tensor]:
    """`module` through ONNX (opset 18) as a function of tensors."""
    torch.onnx.export(module, inputs, path, dynamo=True, opset_version=18, verbose=False)
    loaded = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in loaded.get_inputs()]

    def run(*tensors: Tensor) -> Tensor:
        feeds = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
        found: np.ndarray = loaded.run(None, feeds)[0]
        return torch.from_numpy(found)

    return run


def score_sets(batch: int, tokens: int) -> list[Tensor]:
    """All equal, two values, few values, values a last bit apart, NaN and infinities, distinct."""
    generator = torch.Generator().manual_seed(5)
    few = torch.randint(0, 3, (batch, tokens), generator=generator).float()
    close = torch.nextafter(torch.ones(batch, tokens), torch.full((batch, tokens), 2.0))
    special = torch.where(few == 0, math.nan, torch.where(few == 1, -math.inf, 1.0))
    two = torch.where(few > 1, 1.0, close)
    distinct = torch.randn(batch, tokens, generator=generator)
    halves = distinct.half().float()
    return [torch.zeros(batch, tokens), torch.ones(batch, tokens), few, two, special, distinct, halves]


@pytest.mark.parametrize("keep", [1, 64, 575, 576])
def test_onnx_runtime_chooses_the_same(keep: int, tmp_path: Path) -> None:
    sets = score_sets(2, 576)
    run = session(_Choose(top_in_order, keep).eval(), (sets[5],), tmp_path / "choose.onnx")
    for score in sets:
        assert torch.equal(run(score), top_in_order(score, keep))


def test_onnx_runtime_masks_the_same(tmp_path: Path) -> None:
    sets = score_sets(3, 100)
    alive = torch.rand(3, 100, generator=torch.Generator().manual_seed(1)) < 0.7
    count = torch.tensor([1, 40, int(alive[2].sum())])
    run = session(_Choose(alive_after).eval(), (sets[5], count, alive), tmp_path / "alive.onnx")
    for score in sets:
        assert torch.equal(run(score, count, alive), alive_after(score, count, alive))
