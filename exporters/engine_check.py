"""Engines that were built here, as graphs that run on this machine's GPU, so that they are compared as graphs are.

Needs TensorRT, torch with CUDA, and a GPU.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokcarve.exporters.device.face import EXPORT, BudgetSide, graph_file
from tokcarve.exporters.device.session import Array, Face, Graph
from tokcarve.passes.errors import ExportError

__all__ = ["EngineFace", "EngineSession"]


class EngineSession:
    """A TensorRT engine with the `run` of an ONNX Runtime session; `trt` is the module that it belongs to, and its
    buffers are on `device`."""

    def __init__(self, trt: Any, engine: Any, device: str = "cuda") -> None:
        self.engine, self.context, self.device = engine, engine.create_execution_context(), device
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        reads = {name: engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        self.inputs = tuple(name for name in names if reads[name])
        self.outputs = tuple(name for name in names if not reads[name])
        self.shapes = {name: tuple(engine.get_tensor_shape(name)) for name in names}
        self.types = {name: np.dtype(trt.nptype(engine.get_tensor_dtype(name))) for name in names}

    def run(self, outputs: None, feeds: Mapping[str, Array]) -> list[Array]:
        """All outputs in their order; `feeds` holds every input by name, in its shape and dtype."""
        buffers = {name: self._buffer(feeds[name].astype(self.types[name])) for name in self.inputs}
        buffers |= {name: self._buffer(np.zeros(self.shapes[name], self.types[name])) for name in self.outputs}
        for name, buffer in buffers.items():
            self.context.set_tensor_address(name, buffer.data_ptr())
        stream = torch.cuda.current_stream() if self.device == "cuda" else None
        if not self.context.execute_async_v3(stream.cuda_stream if stream is not None else 0):
            raise RuntimeError("TensorRT did not run the engine")
        if stream is not None:
            stream.synchronize()
        return [buffers[name].cpu().numpy() for name in self.outputs]

    def _buffer(self, array: Array) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)


@dataclass(frozen=True, kw_only=True)
class EngineFace(Face):
    """The static graphs of an export, each by its engine in trt/engines; `trt` is TensorRT's module."""

    trt: Any
    device: str = "cuda"

    def open(
        self, name: str, *, baseline: bool = False, budget: int | None = None, profile_to: Path | None = None
    ) -> Graph:
        """The engine of the graph `name`, as a graph; nothing is profiled."""
        further = budget if isinstance(self.record.side(baseline, budget), BudgetSide) else None
        file = Path(graph_file(name, baseline=baseline, budget=further)).with_suffix(".engine")
        runtime = self.trt.Runtime(self.trt.Logger())
        engine = runtime.deserialize_cuda_engine((self.artifact / EXPORT / "trt" / "engines" / file).read_bytes())
        if engine is None:
            raise ExportError(f"TensorRT cannot read back its engine {file}; export again")
        session = EngineSession(self.trt, engine, self.device)
        return Graph(
            session=session,
            outputs=session.outputs,
            shapes={one: session.shapes[one] for one in session.inputs},
            types={one: session.types[one] for one in session.inputs},
            provider="TensorRT",
            fell_back=False,
        )
