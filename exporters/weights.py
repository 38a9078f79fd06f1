"""One external data file for many ONNX graphs: every tensor written once, streamed, aligned."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from tokcarve.exporters.device.face import FaceFile, StoredTensor
from tokcarve.exporters.sink import Sink
from tokcarve.exporters.tensors import SMALL, address, identity
from tokcarve.passes.errors import ExportError
from tokcarve.passes.families.blank import DTYPES, Stored

__all__ = ["ALIGNMENT", "Placed", "WeightFile", "aligned", "held", "pieces"]

ALIGNMENT = 64
"""Bytes: a cache line. Tensors of a mebibyte and more start on a page (4096), so that a runtime can map them."""

_LARGE, _PAGE = 1 << 20, 4096
_PIECE = 1 << 22  # bytes converted at once, at least a row


@dataclass(frozen=True, kw_only=True)
class Placed:
    """Where a tensor lies in its file (bytes), under the name of the first graph that brought it."""

    name: str
    offset: int
    length: int
    file: str


class WeightFile:
    """Context manager: `save` graphs one after the other, all against the file `path`.

    Two initializers share their bytes if they are the same tensor in memory, or else if their contents are equal
    (dtype, shape and SHA-256); tensors below 1 KiB stay in the graph. A tensor whose address is in `stored` is blank:
    what is written is the tensor of the checkpoint that belongs there, read, converted and transposed on the way. The
    graphs must lie in the directory of `path`: ONNX Runtime, the ONNX checker and TensorRT all refuse external data
    outside a graph's own directory.

    With `refer` a tensor that the checkpoint holds just so is not written: the checkpoint's file gets a second name in
    that directory (a hard link), and graphs read it there. `referred` counts these bytes.
    """

    def __init__(
        self, path: Path, stored: Mapping[int, Stored] | None = None, *, refer: bool = False, direct: bool = False
    ) -> None:
        self.path, self.stored, self.refer, self.referred = path, stored if stored is not None else {}, refer, 0
        self.placed: list[Placed] = []
        self._sink = Sink(path, direct=direct)
        self._digests: list[Future[str]] = []
        self._by_identity: dict[Any, tuple[ir.TensorProtocol, Placed]] = {}
        self._by_content: dict[Any, Placed] = {}

    def __enter__(self) -> "WeightFile":
        self._sink.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sink.__exit__(kind, error, trace)

    @property
    def record(self) -> FaceFile:
        """Size and SHA-256 of what was written so far, which need not be read again for it."""
        return FaceFile(bytes=self._sink.size, sha256=self._sink.digest().result())

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        """What was written so far; a constant whose name another one has is named with its place too."""
        found = dict[str, StoredTensor]()
        for one, digest in zip(self.placed, self._digests, strict=True):
            name = one.name if one.name not in found else f"{one.name}@{one.offset}"
            found[name] = StoredTensor(bytes=one.length, offset=one.offset, sha256_so_far=digest.result())
        return found

    def flush(self) -> None:
        """Make what was written readable by others."""
        self._sink.flush()

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
                where.file,
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
        if key not in self._by_identity:
            origin = self.stored.get(address(tensor) or 0)
            if origin is None:
                placed = self._by_bytes(tensor, name)
            elif self.refer and held(origin, tensor):
                placed = self._linked(origin)
            else:
                placed = self._write(pieces(origin, tensor), name, tensor.nbytes)
            # the tensor is kept as well, so that its address cannot come to stand for another one
            self._by_identity[key] = (tensor, placed)
        return self._by_identity[key][1]

    def _linked(self, origin: Stored) -> Placed:
        shard, link = origin.path.resolve(), self.path.with_name(origin.path.name)
        try:
            if not link.exists():
                os.link(shard, link)
        except OSError as error:
            raise ExportError(
                f"{shard} cannot have a second name in {self.path.parent} ({error.strerror}); put artifact and "
                "checkpoint on one disk that has hard links, or export without --reference-weights"
            ) from None
        entry = origin.entry
        self.referred += entry.end - entry.start
        return Placed(name=origin.name, offset=entry.start, length=entry.end - entry.start, file=link.name)

    def _by_bytes(self, tensor: ir.TensorProtocol, name: str) -> Placed:
        data = tensor.tobytes()
        if len(data) != tensor.nbytes:
            raise ExportError(f"weight {name!r} should have {tensor.nbytes} bytes, but its data has {len(data)}")
        content = (tensor.dtype, tuple(tensor.shape.numpy()), hashlib.sha256(data).digest())
        if content not in self._by_content:
            self._by_content[content] = self._write(
                [torch.frombuffer(bytearray(data), dtype=torch.uint8)], name, len(data)
            )
        return self._by_content[content]

    def _write(self, parts: Iterable[Tensor], name: str, length: int) -> Placed:
        offset = aligned(self._sink.size, length)
        self._sink.pad(offset - self._sink.size)
        for part in parts:
            self._sink.append(part)
        self._digests.append(self._sink.digest())
        self.placed.append(Placed(name=name, offset=offset, length=self._sink.size - offset, file=self.path.name))
        return self.placed[-1]


def aligned(end: int, length: int) -> int:
    """Where a tensor of `length` bytes starts that is written behind `end` bytes."""
    return end + -end % (_PAGE if length >= _LARGE else ALIGNMENT)


def held(origin: Stored, tensor: ir.TensorProtocol) -> bool:
    """Whether the checkpoint's bytes are those of `tensor`: same dtype, same layout."""
    raw: Tensor = tensor.raw
    same = DTYPES[origin.entry.dtype] == raw.dtype and tuple(raw.shape) == origin.entry.shape
    return same and raw.is_contiguous()


def pieces(origin: Stored, tensor: ir.TensorProtocol) -> Iterator[Tensor]:
    """A blank weight or its transpose, from the checkpoint, in the dtype of `tensor`: some rows at a time."""
    raw: Tensor = tensor.raw
    whole = origin.view()
    turned = raw.dim() == 2 and (not raw.is_contiguous() or whole.shape != raw.shape)
    if (whole.t() if turned else whole).shape != raw.shape:
        raise ExportError(f"weight {origin.name!r} of {origin.path} is read in part, as {list(raw.shape)}")
    rows = max(1, _PIECE * raw.shape[0] // (raw.numel() * raw.element_size()))
    for start in range(0, raw.shape[0], rows):
        part = whole[:, start : start + rows] if turned else whole[start : start + rows]
        # torch turns a matrix of its own by blocks, five times as fast as a part of a larger one
        part = (part.contiguous().t() if turned else part).to(raw.dtype)
        if raw.dtype == torch.float16 and whole.dtype != raw.dtype and not bool(part.isfinite().all()):
            raise ExportError(
                f"weight {origin.name!r} of {origin.path} has numbers that float16 cannot hold (more than 65504); "
                "export with --precision bf16 or fp32"
            )
        yield part
