"""One external data file for many ONNX graphs: every tensor written once, streamed, aligned."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import onnx_ir as ir

from tokcarve.exporters.tensors import SMALL, identity
from tokcarve.passes.errors import ExportError

__all__ = ["ALIGNMENT", "Placed", "WeightFile"]

ALIGNMENT = 64
"""Bytes: a cache line. Tensors of a mebibyte and more start on a page (4096), so that a runtime can map them."""

_LARGE, _PAGE = 1 << 20, 4096


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Where a tensor lies in the file (bytes), under the name of the first graph that brought it; its SHA-256."""

    name: str
    offset: int
    length: int
    sha256: str


class WeightFile:
    """Context manager: `save` graphs one after the other, all against the file `path`.

    Two initializers share their bytes if they are the same tensor in memory, or else if their contents are equal
    (dtype, shape and SHA-256); tensors below 1 KiB stay in the graph. The graphs must lie in the directory of `path`:
    ONNX Runtime, the ONNX checker and TensorRT all refuse external data outside a graph's own directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.placed: list[Placed] = []
        self._by_identity: dict[Any, tuple[ir.TensorProtocol, Placed]] = {}
        self._by_content: dict[Any, Placed] = {}

    def __enter__(self) -> "WeightFile":
        self._file = self.path.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def flush(self) -> None:
        """Make what was written readable by others."""
        self._file.flush()

    def save(self, model: ir.Model, path: Path) -> int:
        """Write `model` to `path` and its large initializers to the weight file; the size of the graph file in bytes.

        Raises ExportError when the graph is to lie in another directory than the weights.
        """
        if path.parent.resolve() != self.path.parent.resolve():
            raise ExportError(
                f"graph {path} cannot refer to weights in another directory ({self.path}); write it beside them"
            )
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is None:
                raise ExportError(f"initializer {value.name!r} of {path.name} has no data to write")
            if tensor.nbytes < SMALL:
                continue
            where = self._place(tensor, str(value.name))
            value.const_value = ir.ExternalTensor(
                self.path.name,
                where.offset,
                where.length,
                tensor.dtype,
                shape=tensor.shape,
                name=str(value.name),
                base_dir=self.path.parent,
            )
        ir.save(model, path)
        return path.stat().st_size

    def _place(self, tensor: ir.TensorProtocol, name: str) -> Placed:
        key = identity(tensor)
        if key in self._by_identity:
            return self._by_identity[key][1]
        data = tensor.tobytes()
        if len(data) != tensor.nbytes:
            raise ExportError(f"weight {name!r} should have {tensor.nbytes} bytes, but its data has {len(data)}")
        content = (tensor.dtype, tuple(tensor.shape.numpy()), hashlib.sha256(data).digest())
        found = self._by_content.get(content)
        if found is None:
            found = self._write(data, name, content[-1].hex())
            self._by_content[content] = found
        # the tensor is kept as well, so that its address cannot come to stand for another one
        self._by_identity[key] = (tensor, found)
        return found

    def _write(self, data: bytes, name: str, sha256: str) -> Placed:
        self._file.write(b"\0" * (-self._file.tell() % (_PAGE if len(data) >= _LARGE else ALIGNMENT)))
        placed = Placed(name=name, offset=self._file.tell(), length=len(data), sha256=sha256)
        self._file.write(data)
        self.placed.append(placed)
        return placed
