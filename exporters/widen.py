"""A bfloat16 graph as one that computes in float32 with the same weights: what a CPU can run of it.

ONNX Runtime's CPU provider has bfloat16 kernels for little but casts. The twin shows whether graph and weights are
right; what rounding to bfloat16 between operators does, it does not show.
"""

from collections.abc import Iterable
from pathlib import Path

import onnx
from onnx import TensorProto

__all__ = ["widened"]

_NARROW, _WIDE = TensorProto.BFLOAT16, TensorProto.FLOAT


def widened(path: Path) -> bytes:
    """The model in `path` with every bfloat16 a float32; its weights stay where they are, each behind a cast."""
    model = onnx.load(path, load_external_data=False)
    graph, casts = model.graph, []
    for one in graph.initializer:
        if one.data_type == _NARROW:
            name, one.name = one.name, f"{one.name}.narrow"
            casts.append(onnx.helper.make_node("Cast", [one.name], [name], to=_WIDE))
    _widen(graph)
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    made: bytes = model.SerializeToString()
    return made


def _widen(graph: onnx.GraphProto) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type == _NARROW:
            value.type.tensor_type.elem_type = _WIDE
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == _NARROW:
                attribute.i = _WIDE
            for inner in _graphs(attribute):
                _widen(inner)
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == _NARROW:
                array = onnx.numpy_helper.to_array(attribute.t).astype("float32")
                attribute.t.CopyFrom(onnx.numpy_helper.from_array(array))


def _graphs(attribute: onnx.AttributeProto) -> Iterable[onnx.GraphProto]:
    return (attribute.g,) if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs
