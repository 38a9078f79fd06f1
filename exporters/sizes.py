"""How large the weight file will be, before any of it is written: from the checkpoint's headers and the precision.

Exact for every precision. A graph says which weights it reads and in what order; how many bytes each of them takes
is computed from the shape in its safetensors header, not taken from the graph, so that a weight of another type, or in
part, is found. What is no weight (a method's own constants) counts as the graph has it.
"""

import hashlib
from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import onnx_ir as ir
from torch import Tensor

from tokcarve.exporters.device.compare import Check
from tokcarve.exporters.precision import Precision, matrix_bytes
from tokcarve.exporters.quantise import PART, SCALE
from tokcarve.exporters.tensors import SMALL, identity
from tokcarve.exporters.weights import aligned, held
from tokcarve.passes.families.blank import Stored

__all__ = ["check_size", "header_bytes", "predict"]


def header_bytes(stored: Mapping[int, Stored], matrices: Iterable[int], precision: Precision) -> int:
    """Bytes of a whole checkpoint in `precision`, by its headers alone, without what alignment adds."""
    few = frozenset(matrices)
    return sum(
        sum(matrix_bytes(one.entry.shape[::-1], precision))
        if where in few
        else prod(one.entry.shape) * _each(precision)
        for where, one in stored.items()
    )


def predict(
    models: Iterable[ir.Model],
    named: Mapping[str, Tensor],
    stored: Mapping[int, Stored],
    precision: Precision,
    *,
    refer: bool = False,
) -> int:
    """Bytes of the weight file of `models`, written in this order; `named` are the model's own tensors, `refer` as in
    `WeightFile`."""
    end, seen = 0, set[Any]()
    for model in models:
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is None or identity(tensor) in seen:
                continue
            seen.add(identity(tensor))
            origin = _origin(str(value.name), named, stored)
            size = tensor.nbytes if origin is None else _bytes(str(value.name), origin, precision)
            if size < SMALL or (refer and origin is not None and held(origin, tensor)):
                continue
            if origin is None:
                content = (tensor.dtype, tuple(tensor.shape), hashlib.sha256(tensor.tobytes()).digest())
                if content in seen:
                    continue
                seen.add(content)
            end = aligned(end, size) + size
    return end


def check_size(found: int, predicted: int) -> Check:
    """Whether the weight file has the size that was predicted, to the byte."""
    detail = f"{found} bytes, as predicted from the checkpoint's headers"
    if found != predicted:
        detail = f"{found} bytes, and {predicted} were predicted from the checkpoint's headers"
    return Check(name="weights.data: size", passed=found == predicted, detail=detail)


def _origin(name: str, named: Mapping[str, Tensor], stored: Mapping[int, Stored]) -> Stored | None:
    """The tensor of the checkpoint that an initializer of that name holds, whole or as one of its two parts."""
    weight = named.get(name.removesuffix(PART).removesuffix(SCALE).removesuffix(".T"))
    return None if weight is None else stored.get(weight.data_ptr())


def _bytes(name: str, origin: Stored, precision: Precision) -> int:
    if name.endswith((PART, SCALE)):
        return matrix_bytes(origin.entry.shape[::-1], precision)[0 if name.endswith(PART) else 1]
    return prod(origin.entry.shape) * _each(precision)


def _each(precision: Precision) -> int:
    return precision.dtype.itemsize
