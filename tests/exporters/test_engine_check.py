"""Engines compared as graphs are, with a stand-in for TensorRT that reads and writes the buffers it is given."""

import ctypes
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from tokcarve.exporters.device.compare import Check, check_numbers, read_golden
from tokcarve.exporters.device.face import EXPORT, FOLDER
from tokcarve.exporters.device.pipeline import Pipeline
from tokcarve.exporters.engine_check import EngineFace, EngineSession
from tokcarve.exporters.export import ExportResult
from tokcarve.passes.errors import ExportError

TYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64}


class Engine:
    """What TensorRT's engine and context are to us, with ONNX Runtime inside; `wrong` is added to float outputs."""

    def __init__(self, path: Path, wrong: float = 0.0, runs: bool = True) -> None:
        self.session, self.wrong, self.runs = ort.InferenceSession(str(path)), wrong, runs
        self.ends = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.read = {one.name for one in self.session.get_inputs()}
        self.by_name = {one.name: one for one in self.ends}
        self.num_io_tensors, self.addresses = len(self.ends), dict[str, int]()

    def create_execution_context(self) -> "Engine":
        return self

    def get_tensor_name(self, i: int) -> str:
        return str(self.ends[i].name)

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name in self.read else "out"

    def get_tensor_shape(self, name: str) -> list[int]:
        return list(self.by_name[name].shape)

    def get_tensor_dtype(self, name: str) -> Any:
        return TYPES[self.by_name[name].type]

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, stream: int) -> bool:
        feeds = {name: self.view(name).copy() for name in self.read}
        names = [one.name for one in self.session.get_outputs()]
        for name, made in zip(names, self.session.run(names, feeds), strict=True):
            self.view(name)[...] = made + self.wrong if made.dtype == np.float32 else made
        return self.runs

    def view(self, name: str) -> NDArray[Any]:
        shape, dtype = self.get_tensor_shape(name), np.dtype(self.get_tensor_dtype(name))
        size = int(np.prod(shape)) * dtype.itemsize
        memory = (ctypes.c_char * size).from_address(self.addresses[name])
        return np.frombuffer(memory, dtype).reshape(shape)


def module(**settings: Any) -> Any:
    """A TensorRT whose engine files hold the path of a graph."""

    def read(content: bytes) -> Engine | None:
        return Engine(Path(content.decode()), **settings) if content else None

    return SimpleNamespace(
        TensorIOMode=SimpleNamespace(INPUT="in", OUTPUT="out"),
        nptype=lambda dtype: dtype,
        Logger=lambda: None,
        Runtime=lambda logger: SimpleNamespace(deserialize_cuda_engine=read),
    )


@pytest.fixture(scope="module")
def built(result: ExportResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the export with engines."""
    artifact = tmp_path_factory.mktemp("engines") / "artifact"
    shutil.copytree(result.directory.parent, artifact)
    place = artifact / EXPORT / "trt" / "engines"
    place.mkdir(parents=True)
    for graph in (artifact / EXPORT / FOLDER).glob("*.onnx"):
        (place / f"{graph.stem}.engine").write_bytes(str(graph).encode())
    return artifact


def compared(built: Path, result: ExportResult, *, baseline: bool, **settings: Any) -> list[Check]:
    face = EngineFace(artifact=built, record=result.record, trt=module(**settings), device="cpu")
    samples, carved, whole = read_golden(built / EXPORT / "golden.npz", result.record.geometry.image_token_id)
    pipeline = Pipeline(face, baseline=baseline)
    return check_numbers(pipeline, samples, whole if baseline else carved, side="engines")


@pytest.mark.parametrize("baseline", [False, True])
def test_engines_that_compute_the_graph_pass(built: Path, result: ExportResult, baseline: bool) -> None:
    checks = compared(built, result, baseline=baseline)
    assert len(checks) >= 4
    assert all(check.passed for check in checks), [check for check in checks if not check.passed]


def test_engines_that_compute_something_else_do_not(built: Path, result: ExportResult) -> None:
    failed = {check.name for check in compared(built, result, baseline=False, wrong=0.01) if not check.passed}
    assert {"engines: image features", "engines: logits"} <= failed


def test_engines_of_the_other_side_do_not(built: Path, result: ExportResult) -> None:
    face = EngineFace(artifact=built, record=result.record, trt=module(), device="cpu")
    samples, _, whole = read_golden(built / EXPORT / "golden.npz", result.record.geometry.image_token_id)
    failed = [one for one in check_numbers(Pipeline(face, baseline=False), samples, whole, side="s") if not one.passed]
    assert {"s: kept indices", "s: image features", "s: logits"} <= {one.name for one in failed}


def test_an_engine_that_does_not_run_or_read_is_said(built: Path, result: ExportResult) -> None:
    graph = built / EXPORT / FOLDER / "embedding.onnx"
    session = EngineSession(module(), Engine(graph, runs=False), "cpu")
    feeds = {name: np.zeros(session.shapes[name], session.types[name]) for name in session.inputs}
    with pytest.raises(RuntimeError, match="did not run"):
        session.run(None, feeds)
    empty = built / EXPORT / "trt" / "engines" / "router.engine"
    empty.write_bytes(b"")
    with pytest.raises(ExportError, match=r"cannot read back its engine router\.engine"):
        EngineFace(artifact=built, record=result.record, trt=module(), device="cpu").open("router")
