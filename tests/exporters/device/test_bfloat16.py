"""bfloat16 in and out of a graph, whose bits NumPy carries as uint16, and the float32 twin that a CPU can run."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from toy_face import write_toy

from tokcarve.exporters.device.face import EXPORT, FOLDER, graph_file, read_export, seal
from tokcarve.exporters.device.session import Face, as_floats
from tokcarve.exporters.widen import widened
from tokcarve.passes.errors import ExportError

BFLOAT16, FLOAT, CPU = TensorProto.BFLOAT16, TensorProto.FLOAT, ("CPUExecutionProvider",)


def bits(numbers: np.ndarray) -> np.ndarray:
    """The upper halves of float32 numbers, which are exactly these."""
    return (numbers.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def test_bits_are_read_as_the_numbers_they_are() -> None:
    numbers = np.array([[0.0, -1.5, 2.0**100, 0.0078125]], np.float32)
    np.testing.assert_array_equal(as_floats(bits(numbers)), numbers)
    assert as_floats(numbers) is numbers


@pytest.fixture
def face(tmp_path: Path) -> Face:
    """A face whose vision graph squares bfloat16 numbers by way of float32, which a CPU can do."""
    write_toy(tmp_path)
    ends = [
        helper.make_tensor_value_info(name, kind, (2, 3))
        for name, kind in (("x", BFLOAT16), ("y", BFLOAT16), ("f", FLOAT))
    ]
    nodes = [
        helper.make_node("Cast", ["x"], ["f"], to=FLOAT),
        helper.make_node("Mul", ["f", "f"], ["square"]),
        helper.make_node("Cast", ["square"], ["y"], to=BFLOAT16),
    ]
    graph = helper.make_graph(nodes, "squares", ends[:1], ends[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, tmp_path / EXPORT / FOLDER / graph_file("vision"))
    return Face(artifact=tmp_path, record=read_export(tmp_path), providers=CPU)


def test_a_graph_takes_and_gives_it(face: Face) -> None:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    graph = face.open("vision")
    for _ in range(2):
        made = graph.run({"x": bits(x)})
        assert graph.types["x"] is np.uint16 and made["y"].dtype == np.uint16
        np.testing.assert_array_equal(as_floats(made["y"]), x * x)
        np.testing.assert_array_equal(made["f"], x)
        x = x + 1


def test_a_cpu_is_refused_by_name(face: Face) -> None:
    record = face.record.model_copy(update={"dtype": "bfloat16", "precision": "bf16"})
    (face.artifact / EXPORT / "export.json").write_text(seal(record))
    with pytest.raises(ExportError, match="computes in bfloat16, which ONNX Runtime .* does on no CPU"):
        Face(artifact=face.artifact, record=read_export(face.artifact), providers=CPU).open("vision")


def narrow_model(folder: Path) -> Path:
    """x @ w + 1 in bfloat16, w in a file of its own, with the branches of an If that add."""
    raw = bits(np.arange(6, dtype=np.float32))
    (folder / "w.bin").write_bytes(raw.tobytes())
    weight = TensorProto(name="w", data_type=BFLOAT16, dims=[2, 3], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="w.bin")
    one = helper.make_tensor("one", BFLOAT16, [1], bits(np.ones(1)).tobytes(), raw=True)
    some = helper.make_tensor_value_info("added", BFLOAT16, (1, 3))
    then = helper.make_graph(
        [helper.make_node("Constant", [], ["c"], value=one), helper.make_node("Add", ["product", "c"], ["added"])],
        "then", [], [some],
    )  # fmt: skip
    other = helper.make_graph([helper.make_node("Identity", ["product"], ["added"])], "other", [], [some])
    nodes = [
        helper.make_node("Cast", ["pixels"], ["x"], to=BFLOAT16),
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("If", ["yes"], ["y"], then_branch=then, else_branch=other),
    ]
    graph = helper.make_graph(
        nodes, "narrow", [helper.make_tensor_value_info("pixels", FLOAT, (1, 2))],
        [helper.make_tensor_value_info("y", BFLOAT16, (1, 3))],
        [weight, numpy_helper.from_array(np.array(True), "yes")],
    )  # fmt: skip
    path = folder / "narrow.onnx"
    path.write_bytes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()
    )
    return path


def test_the_twin_computes_in_float32_with_the_same_weights(tmp_path: Path) -> None:
    path = narrow_model(tmp_path)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(tmp_path))
    options.log_severity_level = 4
    with pytest.raises(Exception, match="NOT_IMPLEMENTED"):
        onnxruntime.InferenceSession(str(path), options, providers=list(CPU))
    session = onnxruntime.InferenceSession(widened(path), options, providers=list(CPU))
    made = session.run(None, {"pixels": np.array([[1.001, 2.0]], np.float32)})[0]
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, [[7.0, 10.001, 13.002]], rtol=1e-6)
