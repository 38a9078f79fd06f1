"""`--precision`: what graphs compute in, what proves them, and that a wrong weight of any kind is found."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from exported import KEEP, MAX_NEW, make_artifact, make_export
from PIL import Image

from tokcarve.exporters.device.answer import Answerer
from tokcarve.exporters.device.boards import RELEASES
from tokcarve.exporters.device.face import EXPORT, FOLDER
from tokcarve.exporters.export import ExportResult
from tokcarve.exporters.lint import lint_file
from tokcarve.exporters.precision import PRECISIONS, needed_opset
from tokcarve.exporters.recheck import recheck
from tokcarve.exporters.sizes import check_size
from tokcarve.exporters.source import load_source
from tokcarve.exporters.tensorrt import check_with_rtx
from tokcarve.exporters.verify import check_weights
from tokcarve.passes.errors import ExportError
from tokcarve.recipes.artifact import read_artifact

SMALLER = ("fp16", "bf16", "int8", "int4")
FLOATS = {"fp16": "FLOAT16", "bf16": "BFLOAT16", "int8": "FLOAT16", "int4": "FLOAT16"}


@pytest.fixture(scope="module")
def unexported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("precision"))


@pytest.fixture(scope="module", params=SMALLER)
def result(request: pytest.FixtureRequest, unexported: Path, tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """An export of one precision after the other, of the same artifact; do not write to it."""
    copy = shutil.copytree(unexported, tmp_path_factory.mktemp(request.param) / "artifact")
    return make_export(Path(copy), precision=request.param)


def folder(result: ExportResult) -> Path:
    return result.directory / FOLDER


def test_the_record_says_it(result: ExportResult) -> None:
    record = result.record
    assert record.dtype.upper() == FLOATS[record.precision]
    assert record.opset == needed_opset(record.precision, "ort")
    assert ir.load(folder(result) / "prefill.onnx").opset_imports[""] == record.opset


def test_pixels_and_logits_are_float32_and_the_rest_is_not(result: ExportResult) -> None:
    narrow = FLOATS[result.record.precision]
    graphs = {name: ir.load(folder(result) / f"{name}.onnx").graph for name in ("vision", "prefill", "decode")}
    ends = {
        f"{name}.{value.name}": value.dtype.name
        for name, graph in graphs.items()
        for value in (*graph.inputs, *graph.outputs)
        if value.dtype is not None and value.dtype.is_floating_point()
    }
    wide = {name for name, dtype in ends.items() if dtype == "FLOAT"}
    assert wide == {"vision.pixel_values", "prefill.logits", "decode.logits"}
    assert {dtype for name, dtype in ends.items() if name not in wide} == {narrow}
    assert ends["vision.image_features"] == ends["prefill.present.0.key"] == ends["decode.past_key_values.1.value"]


def test_scores_and_statistics_stay_float32(result: ExportResult) -> None:
    graph = ir.load(folder(result) / "vision.onnx").graph
    scored = [node for node in graph if node.op_type == "TopK" and "select" in str(node.name)]
    softmax = [node for node in graph if node.op_type == "Softmax" and "select" in str(node.name)]
    assert softmax and {node.inputs[0].dtype for node in (*softmax, scored[0])} == {ir.DataType.FLOAT}  # type: ignore[union-attr]
    roots = [node for node in ir.load(folder(result) / "prefill.onnx").graph if node.op_type == "Sqrt"]
    assert roots and {node.inputs[0].dtype for node in roots} == {ir.DataType.FLOAT}  # type: ignore[union-attr]
    norms = [node for node in graph if node.op_type == "LayerNormalization"]
    assert norms and all(node.attributes.get_int("stash_type", 1) == 1 for node in norms)


def test_no_tensorrt_that_reads_its_opset_would_refuse_it(result: ExportResult) -> None:
    read = [name for name, one in RELEASES.items() if one.opset is None or result.record.opset <= one.opset]
    assert ("10.3" in read) == (result.record.precision != "int4")
    for graph in sorted(folder(result).glob("*.onnx")):
        assert lint_file(graph, read) == []


@pytest.mark.tensorrt
def test_tensorrt_rtx_builds_it(result: ExportResult) -> None:
    pytest.importorskip("tensorrt_rtx")
    for name in ("vision", "decode"):
        report = check_with_rtx(folder(result) / f"{name}.onnx")
        assert report.passed, report.problems


def test_it_is_proven_and_proven_again_from_its_files(result: ExportResult) -> None:
    names = {check.name for check in result.record.checks}
    assert {"weights", "weights.data: size", "power", "pruned: kept indices", "unpruned: greedy tokens"} <= names
    again = recheck(result.directory.parent)
    assert not again.failed
    assert {"pruned: logits", "unpruned: image features"} <= {check.name for check in again.checks}


def test_what_was_not_seen_is_said(result: ExportResult) -> None:
    left = " ".join((*result.record.not_checked, *recheck(result.directory.parent).not_checked))
    assert ("float32 twins" in left) == (result.record.precision == "bf16")
    assert ("int8 activations" in left) == (result.record.precision in ("int8", "int4"))


def test_quality_is_side_by_side(result: ExportResult) -> None:
    quality, name = result.record.quality, result.record.precision
    assert quality is not None
    rows = {row.graphs: row for row in quality.rows}
    assert list(rows) == ["fp32", "fp32, pruned", name, f"{name}, pruned"]
    assert (rows["fp32"].agreement, rows["fp32"].kl) == (1.0, 0.0)
    assert rows["fp32, pruned"].kl > 0.01, "pruning shows"
    assert 0 < rows[name].kl < rows["fp32, pruned"].kl, "this precision shows, and less than pruning does"
    assert quality.tokens == quality.samples * MAX_NEW


def test_a_device_answers_with_it(result: ExportResult) -> None:
    artifact = result.directory.parent
    if result.record.precision == "bf16":
        with pytest.raises(ExportError, match="bfloat16.*on no CPU; run it where a GPU is, or export with"):
            Answerer(artifact)
        return
    answerer = Answerer(artifact)
    pixels = answerer.images([Image.new("RGB", (64, 64), "red")])
    image = result.record.geometry.image_token_id
    made = answerer.generate(pixels, [[1, *[image] * result.record.pruned.tokens, 5, 6]], max_new=3)
    assert len(made.tokens[0]) >= 1 and made.kept_indices.shape == (1, KEEP)


def tampered(result: ExportResult, tmp_path: Path, name: str) -> Path:
    """A copy of an export in which one bit of a tensor of the weight file is another one."""
    artifact = Path(shutil.copytree(result.directory.parent, tmp_path / "artifact"))
    place = result.record.tensors[name]
    with (artifact / EXPORT / FOLDER / "weights.data").open("r+b") as stream:
        stream.seek(place.offset + place.bytes // 2)
        changed = bytes([stream.read(1)[0] ^ 1])
        stream.seek(place.offset + place.bytes // 2)
        stream.write(changed)
    return artifact


def test_one_bit_of_a_weight_is_found(result: ExportResult, tmp_path: Path) -> None:
    precision = PRECISIONS[result.record.precision]
    q_proj = [name for name in result.record.tensors if "language_model" in name and "q_proj.weight" in name]
    name = next(name for name in q_proj if name.endswith((".q", ".T")))
    artifact = tampered(result, tmp_path, name)
    source = load_source(read_artifact(artifact), batch=1, max_text=8, max_new=6, precision=precision)
    paths = [artifact / EXPORT / FOLDER / "prefill.onnx"]
    whole = check_weights([folder(result) / "prefill.onnx"], source.named, source.stored)
    assert whole.passed, whole.detail
    found = check_weights(paths, source.named, source.stored)
    assert not found.passed and name in found.detail
    failed = recheck(artifact).failed
    assert [check.name for check in failed] == ["onnx/weights.data: content"] and name in failed[0].detail


def test_a_changed_scale_is_found(result: ExportResult, tmp_path: Path) -> None:
    precision = PRECISIONS[result.record.precision]
    if not precision.bits:
        pytest.skip("no weight of this precision has a scale")
    artifact = Path(shutil.copytree(result.directory.parent, tmp_path / "artifact"))
    path = artifact / EXPORT / FOLDER / "prefill.onnx"
    model = ir.load(path)
    name = next(name for name in model.graph.initializers if name.endswith(".scale"))
    value: Any = model.graph.initializers[name]
    value.const_value = ir.Tensor(np.asarray(value.const_value.numpy()) * np.float16(1.01), name=name)
    ir.save(model, path)
    source = load_source(read_artifact(artifact), batch=1, max_text=8, max_new=6, precision=precision)
    assert not check_weights([path], source.named, source.stored).passed


def test_a_weight_file_of_another_size_is_no_pass(result: ExportResult) -> None:
    size = result.weight_bytes
    assert check_size(size, size).passed
    longer = check_size(size + 64, size)
    assert not longer.passed and str(size + 64) in longer.detail and str(size) in longer.detail


def test_unknown_precisions_are_refused(unexported: Path) -> None:
    for name in ("fp8", "nvfp4", "int3", ""):
        with pytest.raises(ExportError, match=rf"--precision {name} is none that export writes; give one of fp32"):
            make_export(unexported, precision=name)
    assert not (unexported / EXPORT).exists()
