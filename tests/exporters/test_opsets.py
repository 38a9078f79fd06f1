"""Every opset that graphs can be written in: tensorrt-rtx builds it, and the lint says who does not read it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

from tokcarve.exporters.device.boards import RELEASES
from tokcarve.exporters.lint import lint_file
from tokcarve.exporters.onnx import OPSETS, lower
from tokcarve.exporters.tensorrt import check_with_rtx
from tokcarve.exporters.weights import WeightFile
from tokcarve.exporters.wellformed import check_graph
from tokcarve.passes.choose import take, top_in_order


class Chain(nn.Module):
    """What the graphs of an export are made of: patches, attention, a norm, a choice of tokens, a projection."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patch, self.norm = nn.Conv2d(3, 32, 4, 4), nn.LayerNorm(32)
        self.project = nn.Linear(32, 32)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        rows = self.patch(pixels).flatten(2).transpose(1, 2)
        heads = self.norm(rows).unflatten(-1, (4, 8)).transpose(1, 2)
        mixed = nn.functional.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2)
        kept = top_in_order(mixed.pow(2).mean(-1), 5)
        return nn.functional.gelu(self.project(take(rows + mixed, kept))), kept


@pytest.fixture(scope="module", params=OPSETS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Path]]:
    opset: int = request.param
    path = tmp_path_factory.mktemp("opset") / "chain.onnx"
    pixels = torch.zeros(1, 3, 16, 16)
    model = lower(Chain(), (pixels,), input_names=["pixels"], output_names=["rows", "kept"], opset=opset)
    with WeightFile(path.parent / "weights.data") as weights:
        weights.save(model, path)
    yield opset, path


def test_the_graph_is_in_that_opset_and_says_the_same(written: tuple[int, Path]) -> None:
    opset, path = written
    assert check_graph(path, (), opset).passed
    assert not check_graph(path, (), opset + 1).passed
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    rows, kept = ort.InferenceSession(str(path)).run(None, {"pixels": pixels.numpy()})
    with torch.no_grad():
        expected = Chain()(pixels)
    assert np.array_equal(kept, expected[1].numpy())
    assert np.allclose(rows, expected[0].numpy(), atol=1e-5)


@pytest.mark.tensorrt
def test_tensorrt_rtx_builds_it(written: tuple[int, Path]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    report = check_with_rtx(written[1])
    assert report.passed, report.problems


def test_the_lint_names_the_releases_that_do_not_read_it(written: tuple[int, Path]) -> None:
    opset, path = written
    unable = {one.name for one in RELEASES.values() if one.opset is not None and one.opset < opset}
    findings = lint_file(path)
    assert {one for finding in findings for one in finding.ranges} == unable
    assert all("--opset 20 or less" in str(finding) for finding in findings)
