"""Weights in 8 and 4 bits: what they become, who quantises them, and when."""

import logging
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from models import build
from safetensors.torch import save_file
from torch import Tensor, nn

from tokcarve.exporters import quantise
from tokcarve.exporters.onnx import lower, weight_names
from tokcarve.exporters.precision import PRECISIONS, block_of
from tokcarve.exporters.quantise import Quantiser, dequantised, matrices, quantised, round_weights, unpacked
from tokcarve.exporters.sizes import header_bytes, predict
from tokcarve.exporters.weights import WeightFile
from tokcarve.passes import families
from tokcarve.passes.families.blank import Stored
from tokcarve.passes.shards import read_header


@pytest.mark.parametrize("rows", [16, 48, 128, 344])
def test_int8_is_within_half_a_step_of_each_column(rows: int) -> None:
    weight = torch.randn(rows, 10, generator=torch.Generator().manual_seed(rows))
    ints, scale = quantised(weight, 8)
    assert ints.dtype == np.int8 and scale.dtype == np.float16 and scale.shape == (10,)
    assert (scale > 0).all() and np.abs(ints).max() == 127
    assert (np.abs(dequantised(ints, scale) - weight.numpy()) <= 0.501 * scale.astype(np.float32)).all()


@pytest.mark.parametrize(("rows", "block"), [(16, 16), (48, 16), (96, 32), (64, 64), (256, 128)])
def test_int4_is_within_a_step_of_each_block(rows: int, block: int) -> None:
    weight = torch.randn(rows, 10, generator=torch.Generator().manual_seed(rows))
    ints, scale = quantised(weight, 4)
    assert scale.shape == (rows // block, 10) and scale.dtype == np.float16
    assert ints.min() >= -8 and ints.max() <= 7
    step = np.repeat(np.abs(scale.astype(np.float32)), block, axis=0)
    assert (np.abs(dequantised(ints, scale) - weight.numpy()) <= 1.01 * step).all()
    # the scale is that of the block's largest number, which is met
    largest = np.abs(weight.numpy()).reshape(rows // block, block, 10).max(axis=1)
    np.testing.assert_allclose(np.abs(scale.astype(np.float32)), largest / 8, rtol=2e-3)


def test_a_worked_example_in_4_bits() -> None:
    weight = torch.zeros(16, 2)
    weight[:, 0], weight[3, 0] = 1.0, -8.0
    ints, scale = quantised(weight, 4)
    assert scale[0, 0] == 1.0 and ints[3, 0] == -8 and ints[0, 0] == 1 and not ints[:, 1].any()


def test_zeros_stay_zero() -> None:
    for bits in (8, 4):
        ints, scale = quantised(torch.zeros(32, 4), bits)
        assert not dequantised(ints, scale).any() and np.isfinite(scale).all()


def test_half_bytes_are_read_lower_half_first() -> None:
    assert unpacked(np.array([0x21, 0xF8], np.uint8), (2, 2)).tolist() == [[1, 2], [-8, -1]]
    assert unpacked(np.array([0x21, 0x0F], np.uint8), (3,)).tolist() == [1, 2, -1]


def test_blocks_are_whole_and_as_large_as_can_be() -> None:
    assert [block_of(rows, 4) for rows in (4096, 11008, 96, 48, 344)] == [128, 128, 32, 16, None]
    assert block_of(344, 8) == 344


def test_columns_are_quantised_apart_from_each_other() -> None:
    weight = torch.randn(64, 40, generator=torch.Generator().manual_seed(0))
    for bits in (8, 4):
        whole, part = quantised(weight, bits), quantised(weight[:, 8:24], bits)
        assert np.array_equal(whole[0][:, 8:24], part[0]) and np.array_equal(whole[1][..., 8:24], part[1])


def test_fewer_bits_lose_more() -> None:
    weight = torch.randn(256, 40, generator=torch.Generator().manual_seed(0))
    lost = {bits: float(np.abs(dequantised(*quantised(weight, bits)) - weight.numpy()).mean()) for bits in (8, 4)}
    assert 0 < 4 * lost[8] < lost[4]


def test_importing_the_quantizer_leaves_logging_alone() -> None:
    root = logging.getLogger()
    before = (list(root.handlers), root.level)
    quantise._quantizer.cache_clear()
    quantised(torch.ones(16, 2), 4)
    assert (list(root.handlers), root.level) == before


def test_every_linear_layer_of_the_language_model_and_nothing_else() -> None:
    model = build("qwen2", "clip", vision_layers=4, text_layers=2)
    names, found = weight_names(model), matrices(families.capture(model).parts.text_blocks)
    said = sorted(names[where] for where in found)
    kinds = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    kinds += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
    assert said == sorted(f"model.language_model.layers.{i}.{kind}.weight" for i in range(2) for kind in kinds)


def test_rounding_a_model_changes_these_weights_alone() -> None:
    model = build("qwen2", "clip", seed=5, vision_layers=4, text_layers=2)  # a seed of its own: it is written to
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    blocks = families.capture(model).parts.text_blocks
    few = {weight_names(model)[where] for where in matrices(blocks)}
    round_weights(blocks, 4)
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == few
    weight = before["model.language_model.layers.0.mlp.up_proj.weight"]
    expected = torch.from_numpy(dequantised(*quantised(weight.t(), 4))).t()
    torch.testing.assert_close(model.model.language_model.layers[0].mlp.up_proj.weight, expected, rtol=0, atol=0)


class Two(nn.Module):
    """One matrix multiplied with twice, and another."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self.one = nn.Linear(rows, rows, bias=False, dtype=torch.float16)
        self.more = nn.Linear(rows, 24, bias=False, dtype=torch.float16)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.more(torch.relu(self.one(self.one(x))))
        return out


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_a_graph_multiplies_with_what_was_quantised(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    precision, model = PRECISIONS[name], Two(64)
    truth = {"one": torch.randn(64, 64) / 8, "more": torch.randn(24, 64) / 8}
    save_file(truth, tmp_path / "base.safetensors")
    header = read_header(tmp_path / "base.safetensors")
    stored = {
        layer.weight.data_ptr(): Stored(path=tmp_path / "base.safetensors", name=key, entry=header[key])
        for key, layer in (("one", model.one), ("more", model.more))
    }
    times, quantiser = list[tuple[int, ...]](), Quantiser([model], precision, stored)
    true_quantised = quantise.quantised
    monkeypatch.setattr(quantise, "quantised", lambda w, bits: times.append(tuple(w.shape)) or true_quantised(w, bits))
    graphs = [
        lower(model, (torch.ones(1, 4, 64).half(),), input_names=["x"], output_names=["y"], names=weight_names(model))
        for _ in range(2)
    ]
    for graph in graphs:
        quantiser.apply(graph)
    named = dict(model.named_parameters())
    predicted = predict(graphs, named, stored, precision)
    assert not times, "no weight is read before it is written"
    with WeightFile(tmp_path / "weights.data", stored) as weights:
        for i, graph in enumerate(graphs):
            weights.save(graph, tmp_path / f"{i}.onnx")
    assert times == [(64, 64), (64, 24)], "each matrix is quantised once, however many graphs read it"
    assert (tmp_path / "weights.data").stat().st_size == predicted
    assert predicted < header_bytes(stored, [], PRECISIONS["fp16"])
    one, more = (torch.from_numpy(dequantised(*true_quantised(truth[key].t(), precision.bits))) for key in truth)
    x = torch.randn(1, 4, 64).half()
    expected = torch.relu(x.float() @ one @ one) @ more
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(str(tmp_path / "1.onnx"), options, providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": x.numpy()})[0]
    np.testing.assert_allclose(found.astype(np.float32), expected.numpy(), atol=1e-2 * float(expected.abs().max()))
    assert {node.op_type for node in ir.load(tmp_path / "1.onnx").graph} >= {"DequantizeLinear", "MatMul"}


def test_rows_that_make_no_whole_blocks_stay_float16(tmp_path: Path) -> None:
    model = Two(40)
    graph = lower(model, (torch.ones(1, 2, 40).half(),), input_names=["x"], output_names=["y"])
    Quantiser([model], PRECISIONS["int4"], {}).apply(graph)
    assert "DequantizeLinear" not in {node.op_type for node in graph.graph}
    assert graph.opset_imports[""] == 21, "all graphs of an export are in one opset"
