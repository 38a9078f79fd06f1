"""ONNX Runtime sessions of the static graphs of an export: which provider runs them, how
many threads, what they take and give.

CUDA is used when ONNX Runtime has it and can start it, otherwise the CPU; what was chosen is recorded on every graph.
"""

import ctypes
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from tokcarve.exporters.device.face import (
    EXPORT,
    FOLDER,
    BudgetSide,
    ExportRecord,
    check_files,
    graph_file,
    read_export,
)
from tokcarve.passes.errors import ExportError

__all__ = ["GRAPHS", "STATIC", "Array", "Face", "Graph", "as_floats", "open_face", "preload", "start"]

GRAPHS = ("vision", "embedding", "prefill", "decode")
STATIC = frozenset(("ort", "trt"))
"""The faces that are made of these graphs, of the pruned and of the whole model."""
Array = NDArray[Any]

_BFLOAT16 = "tensor(bfloat16)"
# NumPy has no bfloat16: its bits travel as uint16, which no graph takes or gives otherwise
_TYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    _BFLOAT16: np.uint16,
    "tensor(int64)": np.int64,
}
_ONNX_BFLOAT16 = 16


@dataclass(frozen=True)
class Graph:
    """One loaded graph; `provider` is where it runs, `fell_back` whether the one that was wanted did not start,
    `in_bits` whether bfloat16 comes in or goes out."""

    session: Any
    outputs: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    types: Mapping[str, Any]
    provider: str
    fell_back: bool
    in_bits: bool = False

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name; `feeds` holds every input by name, in the shapes of `shapes`, and may hold more."""
        inputs = {name: feeds[name] for name in self.shapes}
        if self.in_bits:
            return self._run_bound(inputs)
        return dict(zip(self.outputs, self.session.run(None, inputs), strict=True))

    def _run_bound(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The same where bfloat16 comes in or goes out: as tensors of ONNX Runtime over the bits."""
        binding, bits = self.session.io_binding(), dict[str, Array]()
        for name, array in inputs.items():
            binding.bind_ortvalue_input(name, _value(array))
        for one in self.session.get_outputs():
            if one.type == _BFLOAT16:
                bits[one.name] = np.empty([int(size) for size in one.shape], np.uint16)
                binding.bind_ortvalue_output(one.name, _value(bits[one.name]))
            else:
                binding.bind_output(one.name, "cpu")
        self.session.run_with_iobinding(binding)
        made = zip(self.outputs, binding.get_outputs(), strict=True)
        return {name: bits[name] if name in bits else value.numpy() for name, value in made}


def as_floats(array: Array) -> Array:
    """Floating-point numbers of a graph as NumPy can compute with them."""
    return (array.astype(np.uint32) << 16).view(np.float32) if array.dtype == np.uint16 else array


def _value(array: Array) -> Any:
    if array.dtype == np.uint16:
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array), _ONNX_BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


@dataclass(frozen=True, kw_only=True)
class Face:
    """The static graphs of an export, checked, to be opened; `threads` is per operator, None leaves it to ONNX
    Runtime.

    `exact` makes products with quantised weights compute as the graph says; else ONNX Runtime rounds what they are
    multiplied with to 8 bits on a CPU, which is many times faster. `reader` gives what is loaded in place of a file, as
    bytes.
    """

    artifact: Path
    record: ExportRecord
    threads: int | None = None
    exact: bool = False
    reader: Callable[[Path], bytes] | None = None
    providers: tuple[str, ...] = field(default_factory=lambda: _providers())

    def open(
        self, name: str, *, baseline: bool = False, budget: int | None = None, profile_to: Path | None = None
    ) -> Graph:
        """The graph `name` (one of GRAPHS, or the router), of the unpruned model if `baseline`, or of a `budget`.

        `profile_to` makes ONNX Runtime time every node and write files with that prefix; it slows the graph down.
        Raises ExportError if ONNX Runtime cannot load it.
        """
        options = ort.SessionOptions()
        options.log_severity_level = 4
        # threads that wait for work burn the core that another session, or another process, needs
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if self.threads is not None:
            options.intra_op_num_threads = self.threads
        if profile_to is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile_to)
        further = budget if isinstance(self.record.side(baseline, budget), BudgetSide) else None
        path = self.artifact / EXPORT / FOLDER / graph_file(name, baseline=baseline, budget=further)
        if self.exact:
            options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        model: bytes | None = None
        if self.reader is not None:
            model = self.reader(path)
            options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        elif self.record.dtype == "bfloat16" and self.providers == ("CPUExecutionProvider",):
            raise ExportError(
                f"{path} computes in bfloat16, which ONNX Runtime {ort.__version__} does on no CPU; run it where a GPU "
                "is, or export with --precision fp16"
            )
        session = start(path, options, self.providers, model)
        inputs = session.get_inputs()
        return Graph(
            session=session,
            outputs=tuple(output.name for output in session.get_outputs()),
            shapes={one.name: tuple(int(size) for size in one.shape) for one in inputs},
            types={one.name: _TYPES[one.type] for one in inputs},
            provider=session.get_providers()[0],
            fell_back=session.get_providers()[0] != self.providers[0],
            in_bits=any(one.type == _BFLOAT16 for one in (*inputs, *session.get_outputs())),
        )


def open_face(artifact: Path, threads: int | None = None) -> Face:
    """The static graphs of `artifact`, its record and files checked, nothing loaded yet.

    Raises ExportError for an artifact without an export of them or a thread count below 1, ArtifactError for changed
    files.
    """
    if threads is not None and threads < 1:
        raise ExportError(f"threads={threads} is no thread count; give 1 or more, or nothing for the default")
    record = read_export(artifact)
    if not STATIC & set(record.faces):
        raise ExportError(
            f"{artifact} was exported for {', '.join(record.faces)} alone; what runs here are the static graphs of "
            f"--face ort: export again with `tokcarve export {artifact} --face ort,{','.join(record.faces)} --force`"
        )
    check_files(artifact, record)
    return Face(artifact=artifact, record=record, threads=threads)


def start(path: Path, options: Any, providers: Sequence[str], model: bytes | None = None) -> Any:
    """A session of the graph in `path`, or of `model` in its place; ExportError if ONNX Runtime cannot load it."""
    try:
        return ort.InferenceSession(str(path) if model is None else model, options, providers=list(providers))
    except Exception as error:  # ONNX Runtime raises its own kinds, straight from Exception
        raise ExportError(f"ONNX Runtime {ort.__version__} cannot load {path}: {_first_line(error)}") from error


def _providers() -> tuple[str, ...]:
    """CUDA before the CPU where both ONNX Runtime and a driver are there, else the CPU alone."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return ("CPUExecutionProvider",)
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ("CPUExecutionProvider",)
    ort.set_default_logger_severity(4)
    preload()
    return ("CUDAExecutionProvider", "CPUExecutionProvider")


def preload() -> None:
    """Load the libraries of CUDA and cuDNN that pip installed, where ONNX Runtime finds them, and say nothing."""
    with redirect_stdout(StringIO()):  # it prints what it does not find, even where the loader will
        ort.preload_dlls()


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
