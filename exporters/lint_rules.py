"""What TensorRT will not build: one table of rules about single nodes, and one about inputs and the graph as a whole.

Each says in which TensorRT releases it holds, after NVIDIA's operator tables and change logs, and what tensorrt-rtx 1.7
refused when tried.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from tokcarve.exporters.device.boards import RELEASES

__all__ = ["ALL", "GRAPH_RULES", "RULES", "TOPK_LIMIT", "GraphRule", "Rule"]

ALL = tuple(RELEASES)
TOPK_LIMIT = 3840
"""The most that TensorRT's TopK takes."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """`check(node)` answers what is wrong with a node in the versions `ranges`, or None."""

    name: str
    ranges: tuple[str, ...]
    check: Callable[[ir.Node], str | None]
    remedy: str


@dataclass(frozen=True, kw_only=True)
class GraphRule:
    """`check(model)` yields (kind, name, what is wrong) of everything that the releases `ranges` refuse of a graph."""

    name: str
    ranges: tuple[str, ...]
    check: Callable[[ir.Model], Iterator[tuple[str, str, str]]]
    remedy: str


def _ops(*names: str, why: str) -> Callable[[ir.Node], str | None]:
    return lambda node: why if node.op_type in names else None


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    return ir.convenience.get_const_tensor(value) if value is not None else None


def _topk_limit(node: ir.Node) -> str | None:
    if node.op_type != "TopK":
        return None
    count = _constant(node.inputs[1])
    number = int(count.numpy().reshape(-1)[0]) if count is not None else 0
    return f"K is {number}, the limit is {TOPK_LIMIT}" if number > TOPK_LIMIT else None


def _topk_constant(node: ir.Node) -> str | None:
    return "K is computed" if node.op_type == "TopK" and _constant(node.inputs[1]) is None else None


def _scatter_reduction(node: ir.Node) -> str | None:
    if not node.op_type.startswith("Scatter"):
        return None
    reduction = node.attributes.get_string("reduction", "none")
    return f"reduction is {reduction!r}" if reduction != "none" else None


def _arg_rank(node: ir.Node) -> str | None:
    shape = node.inputs[0].shape if node.op_type in {"ArgMax", "ArgMin"} and node.inputs[0] is not None else None
    return "its input has one dimension" if shape is not None and len(shape) < 2 else None


def _attention_float32(node: ir.Node) -> str | None:
    if node.op_type != "Attention" or "TRT_decomposable" in node.attributes:
        return None
    value = node.inputs[0]
    return "it works on float32" if value is not None and value.dtype == ir.DataType.FLOAT else None


def _attention_cache(node: ir.Node) -> str | None:
    if node.op_type != "Attention":
        return None
    if any(value is not None for value in node.inputs[4:]):
        return "it reads a key-value cache or nonpad_kv_seqlen, which is refused or silently ignored"
    return "it has more than one output" if len(node.outputs) > 1 else None


def _foreign(node: ir.Node) -> str | None:
    return f"its domain is {node.domain!r}" if node.domain not in {"", "ai.onnx"} else None


def _mixed(node: ir.Node) -> str | None:
    if node.op_type in {"Cast", "CastLike", "QuantizeLinear", "DequantizeLinear", "Loop", "If", "Scan"}:
        return None
    found = {v.dtype.name for v in node.inputs if v is not None and v.dtype is not None and v.dtype.is_floating_point()}
    return f"its inputs are {' and '.join(sorted(found))}" if len(found) > 1 else None


def _double(node: ir.Node) -> str | None:
    return "it yields float64" if any(value.dtype == ir.DataType.DOUBLE for value in node.outputs) else None


def _dynamic(node: ir.Node) -> str | None:
    for value in node.outputs:
        if value.shape is not None and not value.shape.is_static():
            return f"its output {value.name!r} has the shape {value.shape}"
    return None


def _unknown_shape(node: ir.Node) -> str | None:
    for value in node.outputs:
        if value.name and value.shape is None and value.uses():
            return f"the shape of its output {value.name!r} depends on data or cannot be inferred"
    return None


def _einsum(node: ir.Node) -> str | None:
    if node.op_type != "Einsum":
        return None
    equation = node.attributes.get_string("equation", "")
    terms = equation.replace(" ", "").split("->")[0].split(",")
    if "..." in equation:
        return f"its equation {equation!r} has an ellipsis"
    return f"its equation {equation!r} takes a diagonal" if any(len(set(t)) < len(t) for t in terms) else None


def _cumsum_axis(node: ir.Node) -> str | None:
    return "its axis is computed" if node.op_type == "CumSum" and _constant(node.inputs[1]) is None else None


RULES = (
    Rule(name="foreign-domain", ranges=ALL, check=_foreign, remedy="use standard ONNX operators"),
    Rule(
        name="data-dependent-shape",
        ranges=ALL,
        check=_ops("NonZero", "Unique", "Compress", why="its output size depends on data"),
        remedy="choose with TopK and a constant K, or mask with Where",
    ),
    Rule(
        name="unsupported-operator",
        ranges=ALL,
        check=lambda node: "no importer" if node.op_type == "BitShift" or "Sequence" in node.op_type else None,
        remedy="use tensors and arithmetic",
    ),
    Rule(
        name="topk-limit", ranges=ALL, check=_topk_limit, remedy="choose per tile, or take the tokens to drop instead"
    ),
    Rule(name="topk-constant", ranges=ALL, check=_topk_constant, remedy="make the count a constant"),
    Rule(name="scatter-reduction", ranges=ALL, check=_scatter_reduction, remedy="merge with a one-hot matrix product"),
    Rule(name="arg-rank", ranges=ALL, check=_arg_rank, remedy="add a dimension before it"),
    Rule(
        name="attention-missing",
        ranges=("10.3", "10.13"),
        check=_ops("Attention", why="there is no importer for it"),
        remedy="export with opset 18, where attention is decomposed",
    ),
    Rule(
        name="attention-float32",
        ranges=("10.16", "11", "rtx-1.7"),
        check=_attention_float32,
        remedy="export with opset 18, or in float16",
    ),
    Rule(name="attention-cache", ranges=ALL, check=_attention_cache, remedy="join the cache outside the operator"),
    Rule(
        name="opset-23-operator",
        ranges=("10.3", "10.13"),
        check=_ops("RotaryEmbedding", "RMSNormalization", "TensorScatter", why="there is no importer for it"),
        remedy="export with opset 18, where it is decomposed",
    ),
    Rule(
        name="swish",
        ranges=("10.3", "10.13", "10.16"),
        check=_ops("Swish", why="there is no importer for it"),
        remedy="write it as Sigmoid and Mul",
    ),
    Rule(name="mixed-precision", ranges=ALL, check=_mixed, remedy="cast one of them explicitly"),
    Rule(name="float64", ranges=ALL, check=_double, remedy="compute in float32"),
    Rule(name="dynamic-dimension", ranges=ALL, check=_dynamic, remedy="export with constant sizes"),
    Rule(name="unknown-shape", ranges=ALL, check=_unknown_shape, remedy="make the shape a constant"),
    Rule(name="einsum", ranges=("10.3",), check=_einsum, remedy="write it as MatMul"),
    Rule(name="cumsum-axis", ranges=("10.3",), check=_cumsum_axis, remedy="make the axis a constant"),
)
"""Of nodes, also of those inside of others."""


def _newer(limit: int) -> Callable[[ir.Model], Iterator[tuple[str, str, str]]]:
    def check(model: ir.Model) -> Iterator[tuple[str, str, str]]:
        opset = model.opset_imports.get("", 0)
        if opset > limit:
            yield "graph", model.graph.name or "", f"opset {opset}"

    return check


def _functions(model: ir.Model) -> Iterator[tuple[str, str, str]]:
    if model.functions:
        yield "graph", model.graph.name or "", f"it has functions ({', '.join(map(str, model.functions))})"


def _open_inputs(model: ir.Model) -> Iterator[tuple[str, str, str]]:
    for value in model.graph.inputs:
        if value.shape is None or not value.shape.is_static():
            yield "input", str(value.name), f"shape {value.shape}"


def _unused_inputs(model: ir.Model) -> Iterator[tuple[str, str, str]]:
    for value in model.graph.inputs:
        if not value.uses() and not value.is_graph_output():
            yield "input", str(value.name), "no node reads it"


GRAPH_RULES = (
    *(
        GraphRule(
            name="opset",
            ranges=(one.name,),
            check=_newer(one.opset),
            remedy=f"export with --opset {one.opset} or less",
        )
        for one in RELEASES.values()
        if one.opset is not None
    ),
    GraphRule(name="functions", ranges=ALL, check=_functions, remedy="inline them"),
    GraphRule(name="dynamic-dimension", ranges=ALL, check=_open_inputs, remedy="export with constant sizes"),
    GraphRule(name="unused-input", ranges=ALL, check=_unused_inputs, remedy="take it out of the signature"),
)
"""Of a graph and its inputs."""
