"""Weights in 8 or 4 bits, one matrix at a time, behind standard DequantizeLinear nodes.

int4 has a scale per block of a column, by ONNX Runtime's own quantizer; int8 has one per column, for TensorRT documents
no blocks for it, and what the quantizer gives for 8 bits are scales of either sign, which TensorRT refuses. Every scale
is float16 and there are no zero points: TensorRT reads no unsigned 4-bit weights. ONNX Runtime fuses the node with its
product when it loads a graph; no runtime needs an operator of its own for it.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tokcarve.exporters.precision import Precision, block_of, needed_opset
from tokcarve.exporters.tensors import SMALL, address
from tokcarve.passes.families.blank import Stored

__all__ = ["PART", "SCALE", "Quantiser", "dequantised", "matrices", "quantised", "round_weights", "unpacked"]

PART, SCALE = ".q", ".scale"
"""Behind the name of a weight: its integers and its scales."""

Ints = NDArray[np.int8]
Halves = NDArray[np.float16]


def matrices(blocks: Iterable[nn.Module]) -> frozenset[int]:
    """Addresses of the weights that int8 and int4 quantise: every linear layer of a language model's `blocks`."""
    return frozenset(layer.weight.data_ptr() for layer in _linear(blocks))


def _linear(blocks: Iterable[nn.Module]) -> Iterator[nn.Linear]:
    return (module for block in blocks for module in block.modules() if isinstance(module, nn.Linear))


def quantised(weight: Tensor, bits: int) -> tuple[Ints, Halves]:
    """A matrix [rows, columns] that products sum over by rows -> integers [rows, columns] and scales, float16 [columns]
    in int8 and [blocks, columns] in int4."""
    whole = weight.detach().float().contiguous().numpy()
    block = block_of(len(whole), bits)
    assert block is not None
    return _columns(whole) if bits == 8 else _blocks(whole, block)


def _columns(whole: NDArray[np.float32]) -> tuple[Ints, Halves]:
    # a column of zeros has any scale
    scale = np.maximum(np.abs(whole).max(axis=0) / 127, np.finfo(np.float16).tiny).astype(np.float16)
    return np.clip(np.rint(whole / scale.astype(np.float32)), -127, 127).astype(np.int8), scale


def _blocks(whole: NDArray[np.float32], block: int) -> tuple[Ints, Halves]:
    """By ONNX Runtime's quantizer, which takes a model: here of one product."""
    rows, columns = whole.shape
    ends = [onnx.helper.make_tensor_value_info(name, 1, (1, n)) for name, n in (("x", rows), ("y", columns))]
    product = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([product], "one", ends[:1], ends[1:], [onnx.numpy_helper.from_array(whole, "w")])
    opset = [onnx.helper.make_opsetid("", 21)]
    made = _process(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), block)
    scale = next(one for one in made.graph.initializer if one.data_type == onnx.TensorProto.FLOAT)
    ints = next(one for one in made.graph.initializer if one.data_type == onnx.TensorProto.INT4)
    half = onnx.numpy_helper.to_array(scale).astype(np.float16)
    return unpacked(np.frombuffer(ints.raw_data, np.uint8), (rows, columns)), half


def _process(model: onnx.ModelProto, block: int) -> onnx.ModelProto:
    kind, form = _quantizer()
    made = kind(model, bits=4, block_size=block, is_symmetric=True, quant_format=form)
    made.process()
    found: onnx.ModelProto = made.model.model
    return found


@lru_cache
def _quantizer() -> tuple[Any, Any]:
    """ONNX Runtime's quantizer, kept from setting up logging for the whole process when it is imported."""
    root, shield = logging.getLogger(), logging.NullHandler()
    root.addHandler(shield)
    try:
        from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer, QuantFormat
    finally:
        root.removeHandler(shield)
    logging.getLogger(MatMulNBitsQuantizer.__module__).setLevel(logging.ERROR)
    return MatMulNBitsQuantizer, QuantFormat.QDQ


def unpacked(raw: NDArray[np.uint8], shape: tuple[int, ...]) -> Ints:
    """Integers of 4 bits, two in a byte, the lower half first, as int8 of `shape`."""
    pairs = np.stack([raw << 4, raw], axis=-1).view(np.int8) >> 4
    return pairs.reshape(-1)[: int(np.prod(shape))].reshape(shape)


def dequantised(ints: Ints, scale: Halves) -> NDArray[np.float32]:
    """What DequantizeLinear makes of them, in float32."""
    wide = scale.astype(np.float32)
    if wide.ndim == 2:
        wide = np.repeat(wide, len(ints) // len(wide), axis=0)
    return ints.astype(np.float32) * wide


def round_weights(blocks: Iterable[nn.Module], bits: int) -> None:
    """Gives the matrices of `blocks` in torch, in place, the values that they have once they were quantised."""
    for layer in _linear(blocks):
        if block_of(layer.in_features, bits) is not None:
            made = dequantised(*quantised(layer.weight.t(), bits))
            layer.weight.data.copy_(torch.from_numpy(made).t())


class Quantiser:
    """Puts quantised weights into one graph after the other; a weight is the same tensors in all of them, and is read
    and quantised when these are written."""

    def __init__(self, blocks: Iterable[nn.Module], precision: Precision, stored: Mapping[int, Stored]) -> None:
        self.name, self.bits, self.stored, self.matrices = precision.name, precision.bits, stored, matrices(blocks)
        self._made: dict[int, tuple[ir.TensorProtocol, ir.TensorProtocol]] = {}
        self._latest: tuple[int, tuple[Ints, Halves]] | None = None
        # what every graph that reads it holds itself
        self._inside: dict[int, Halves] = {}

    def apply(self, model: ir.Model) -> None:
        """Reads every matrix of the language model's layers through a DequantizeLinear, in place; does nothing in a
        precision that quantises none."""
        if not self.bits:
            return
        # operators of the newer opset are those of the older one with more types
        model.opset_imports[""] = max(model.opset_imports[""], needed_opset(self.name, "ort"))
        model.ir_version = max(model.ir_version, 10)
        for weight in list(model.graph.initializers.values()):
            where = address(weight.const_value) if weight.const_value is not None else None
            if where in self.matrices and str(weight.name).endswith(".T"):
                self._replace(model.graph, weight, where)

    def _replace(self, graph: ir.Graph, weight: ir.Value, where: int) -> None:
        tensor: Any = weight.const_value
        block = block_of(int(tensor.shape[0]), self.bits)
        if block is None:
            return
        if where not in self._made:
            self._made[where] = self._tensors(where, tensor, block)
        inputs = []
        for suffix, tensor in zip((PART, SCALE), self._made[where], strict=True):
            name = f"{weight.name}{suffix}"
            value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
            graph.register_initializer(value)
            inputs.append(value)
        attributes = {"axis": 1} if self.bits == 8 else {"axis": 0, "block_size": block}
        node = ir.node("DequantizeLinear", inputs, attributes=attributes, name=f"{weight.name}/DequantizeLinear")
        node.outputs[0].name = f"{weight.name}.read"
        node.outputs[0].shape, node.outputs[0].type = weight.shape, ir.TensorType(ir.DataType.FLOAT16)
        graph.insert_before(graph[0], node)
        ir.convenience.replace_all_uses_with(weight, node.outputs[0])
        del graph.initializers[str(weight.name)]

    def _tensors(self, where: int, tensor: Any, block: int) -> tuple[ir.TensorProtocol, ir.TensorProtocol]:
        """The integers and the scales of a matrix, neither of them made yet."""

        def parts() -> tuple[Ints, Halves]:
            # both are written one after the other; no more than one matrix is kept
            if self._latest is None or self._latest[0] != where:
                origin = self.stored.get(where)
                self._latest = (where, quantised(tensor.raw if origin is None else origin.view().t(), self.bits))
                if self._latest[1][1].nbytes < SMALL:
                    self._inside[where] = self._latest[1][1]
            return self._latest[1]

        def scale() -> Halves:
            return self._inside[where] if where in self._inside else parts()[1]

        rows, columns = (int(size) for size in tensor.shape)
        scales = [columns] if self.bits == 8 else [rows // block, columns]
        kind, half = ir.DataType.INT8 if self.bits == 8 else ir.DataType.INT4, ir.DataType.FLOAT16
        return (
            ir.LazyTensor(
                lambda: ir.Tensor(parts()[0].astype(kind.numpy()), dtype=kind), kind, ir.Shape([rows, columns])
            ),
            ir.LazyTensor(lambda: ir.Tensor(scale(), dtype=half), half, ir.Shape(scales)),
        )
