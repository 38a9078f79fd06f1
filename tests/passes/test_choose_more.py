"""The other primitives of choosing: masks, the best, one-hot, sorting and sparse merges, in torch and ONNX Runtime."""

import math
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tokcarve.passes.choose import LOWEST, best, falling, merge, one_hot, order, sorting, top_in_order, top_mask

TIED = st.lists(st.sampled_from([0.0, -0.0, 0.5, -1.0, 1e-30, 3e38, math.inf]), min_size=1, max_size=30)
SMOOTH = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=30)


@given(st.one_of(TIED, SMOOTH), st.data())
def test_the_mask_marks_what_the_choice_takes(scores: list[float], data: st.DataObject) -> None:
    keep = data.draw(st.integers(0, len(scores)))
    marked = top_mask(torch.tensor([scores]), keep)[0].nonzero().flatten().tolist()
    assert marked == (top_in_order(torch.tensor([scores]), keep)[0].tolist() if keep else [])


@given(st.one_of(TIED, SMOOTH))
def test_the_best_is_the_first_of_the_highest(scores: list[float]) -> None:
    found = best(torch.tensor([scores]))
    assert found.dtype == torch.int64
    assert found.tolist() == [scores.index(max(scores))]


def test_the_best_of_nothing_comparable_is_still_a_place() -> None:
    assert best(torch.tensor([[math.nan, 1.0, 2.0]])).tolist() == [2]


def test_the_best_of_every_row() -> None:
    rows = torch.tensor([[[1.0, 3.0, 3.0], [0.0, 0.0, -1.0]]])
    assert best(rows).tolist() == [[1, 0]]
    assert one_hot(best(rows), 3).tolist() == [[[0, 1, 0], [1, 0, 0]]]
    assert one_hot(torch.tensor([-1, 3]), 3).sum() == 0


@given(st.one_of(TIED, SMOOTH), st.data())
def test_falling_is_the_start_of_the_whole_order(scores: list[float], data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, len(scores)))
    whole = order(torch.tensor([scores]).clamp(LOWEST, -LOWEST))
    assert torch.equal(falling(torch.tensor([scores]), keep), whole[:, :keep])


@given(st.permutations(range(-1, 12)), st.integers(1, 13))
def test_sorting_brings_ids_into_rising_order(ids: list[int], count: int) -> None:
    index = torch.tensor([ids[:count]])
    assert torch.gather(index, 1, sorting(index, 12))[0].tolist() == sorted(ids[:count])


def test_a_sparse_merge_is_the_dense_one() -> None:
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 3 + 9, 5, generator=draw)
    sources = torch.tensor([[0, 4, 8], [1, 2, 3]])
    index, own = torch.tensor([[1, 5], [0, 7]]), torch.tensor([[0.5, 1.0], [0.0, 2.0]])
    weights = torch.rand(2, 2, 3, generator=draw)
    dense = (weights.unsqueeze(3) * one_hot(sources, 9).unsqueeze(1)).sum(2) + own.unsqueeze(2) * one_hot(index, 9)
    found = merge(rows, weights, 3, sources=sources, index=index, own=own)
    torch.testing.assert_close(found, merge(rows, dense, 3))
    assert torch.equal(found[:, :3], rows[:, :3])
    half = merge(rows.half(), weights, 3, sources=sources, index=index, own=own)
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), found, atol=5e-3, rtol=5e-3)


class _All(nn.Module):
    def forward(self, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        index = top_in_order(score, 7)
        return top_mask(score, 7), best(score), sorting(index, score.shape[1])


@pytest.mark.parametrize("kind", ["smooth", "tied", "flat"])
def test_onnx_runtime_does_the_same(kind: str, tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(2)
    smooth = torch.randn(3, 50, generator=draw)
    score = {"smooth": smooth, "tied": smooth.round(), "flat": torch.zeros(3, 50)}[kind]
    program: Any = torch.onnx.export(_All().eval(), (smooth,), dynamo=True, opset_version=18, verbose=False)
    program.save(str(tmp_path / "all.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "all.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(None, {session.get_inputs()[0].name: score.numpy()})
    for ours, theirs in zip(_All()(score), found, strict=True):
        assert torch.equal(ours, torch.from_numpy(theirs))
