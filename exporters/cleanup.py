"""What an exported graph goes through before it is written: in-place passes over an `onnx_ir` model.

The exporter's own optimiser is not used: it reads every weight, takes longer than the export, and folds transposed
weights into constants without a name. These passes read no weight above 1 KiB.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

__all__ = ["SELECT", "SMALL", "clean", "identity"]

SMALL = 1024
"""Bytes below which a tensor counts as a constant of the graph and not as a weight."""

SELECT = "tokcarve_select"
"""Prefix of the names of nodes that belong to the selection of tokens."""

# numbers of a shape or an index, never a mask: what a runtime can compute at load is not stored
_FEW = 64

_Key = tuple[Any, ...]


def identity(tensor: ir.TensorProtocol) -> _Key:
    """Equal exactly for tensors that are known to hold the same data without reading more than 1 KiB of it."""
    shape = tuple(tensor.shape.numpy())
    address = _address(tensor)
    if address is not None:
        return (tensor.dtype, shape, address, tensor.raw.stride())
    if tensor.nbytes < SMALL:
        return (tensor.dtype, shape, tensor.tobytes())
    return (tensor.dtype, shape, id(tensor))


def _address(tensor: ir.TensorProtocol) -> int | None:
    """Where the data of a weight lies in memory; None for a tensor that torch does not hold."""
    raw: Any = getattr(tensor, "raw", None)
    return int(raw.data_ptr()) if hasattr(raw, "data_ptr") else None


def clean(model: ir.Model, *, names: Mapping[int, str], as_stored: Collection[str] = ()) -> None:
    """Make `model` small, readable and free of repetition, in place.

    `names` gives the name of a weight by the address of its data. Weights in `as_stored` are read untransposed by
    another graph and keep their layout; every other weight that is only used transposed is stored transposed.
    """
    common.InlinePass()(model)
    _share(model.graph)
    _name_weights(model.graph, names)
    weights = frozenset(model.graph.initializers)
    _transposed(model.graph, frozenset(as_stored))
    optimizer.fold_constants(model, input_size_limit=_FEW, output_size_limit=_FEW, should_fold=_all_but(weights))
    common.RemoveUnusedNodesPass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _share(model.graph)
    common.IdentityEliminationPass()(model)
    _root_as_divisor(model.graph)
    _plain_shapes(model.graph)
    _merge(model.graph)
    common.RemoveUnusedNodesPass()(model)
    common.OutputFixPass()(model)
    _rename(model.graph)
    common.ClearMetadataAndDocStringPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    common.ShapeInferencePass()(model)
    model.producer_name, model.producer_version = "tokcarve", None


def _all_but(weights: frozenset[str]) -> Callable[[ir.Node], bool | None]:
    """Leave every weight alone, however small: folded, it would lose its name."""
    return lambda node: False if any(value is not None and value.name in weights for value in node.inputs) else None


def _share(graph: ir.Graph) -> None:
    """One initializer per tensor."""
    seen: dict[_Key, ir.Value] = {}
    for value in list(graph.initializers.values()):
        if value.const_value is None or value.is_graph_input():
            continue
        first = seen.setdefault(identity(value.const_value), value)
        if first is not value and not value.is_graph_output():
            ir.convenience.replace_all_uses_with(value, first)
            del graph.initializers[value.name]


def _name_weights(graph: ir.Graph, names: Mapping[int, str]) -> None:
    """Call every weight as the checkpoint calls it, not as the module through which it was reached."""
    for value in list(graph.initializers.values()):
        address = _address(value.const_value) if value.const_value is not None else None
        name = names.get(address) if address is not None else None
        if name is not None and name != value.name and name not in graph.initializers:
            value.name = name


def _transposed(graph: ir.Graph, as_stored: frozenset[str]) -> None:
    """Replace `MatMul(x, Transpose(weight))`: a weight is stored in the layout that `MatMul` reads.

    ONNX Runtime would fold the transposition at load: measured on 256 MiB of weights it took twice the time and 1.5
    times the memory of reading them in the right layout; and tools that quantize look for a constant.
    """
    for node in list(graph):
        weight = node.inputs[0] if node.op_type == "Transpose" else None
        if weight is None or not weight.is_initializer() or weight.const_value is None:
            continue
        if len(weight.const_value.shape) != 2 or any(user.op_type != "MatMul" for user, _ in node.outputs[0].uses()):
            continue
        if weight.name in as_stored:
            for user, _ in list(node.outputs[0].uses()):
                _as_gemm(graph, user, weight)
            continue
        ir.convenience.replace_all_uses_with(node.outputs[0], _flipped(graph, weight))
        graph.remove(node, safe=True)


def _flipped(graph: ir.Graph, weight: ir.Value) -> ir.Value:
    """The initializer that holds the transpose of a 2-D weight, made when first asked for; a view, not a copy."""
    name = f"{weight.name}.T"
    if name not in graph.initializers:
        raw: Any = getattr(weight.const_value, "raw", None)
        if hasattr(raw, "data_ptr"):
            tensor: ir.TensorProtocol = ir.tensor_adapters.TorchTensor(raw.t(), name=name)
        else:
            tensor = ir.Tensor(np.ascontiguousarray(weight.const_value.numpy().T), name=name)
        graph.register_initializer(
            ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        )
    return graph.initializers[name]


def _as_gemm(graph: ir.Graph, product: ir.Node, weight: ir.Value) -> None:
    """`MatMul(x, weight^T)` as `Gemm(transB=1)`, which reads the layout that the embedding table has."""
    rows, out = product.inputs[0], product.outputs[0]
    shape = [int(size) for size in out.shape]
    flat = ir.node("Reshape", [rows, _ints(graph, [-1, int(rows.shape[-1])])], name=f"{product.name}_flat")
    gemm = ir.node("Gemm", [flat.outputs[0], weight], attributes={"transB": 1}, name=f"{product.name}_gemm")
    back = ir.node("Reshape", [gemm.outputs[0], _ints(graph, shape)], name=product.name)
    for made in (flat, gemm, back):
        made.metadata_props.update(product.metadata_props)
        made.outputs[0].type = out.type
    ir.convenience.replace_nodes_and_values(graph, product, [product], [flat, gemm, back], [out], [back.outputs[0]])


def _ints(graph: ir.Graph, numbers: list[int]) -> ir.Value:
    name = "shape_" + "_".join(str(number).replace("-", "m") for number in numbers)
    if name not in graph.initializers:
        tensor = ir.Tensor(np.array(numbers, np.int64), name=name)
        graph.register_initializer(
            ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
        )
    return graph.initializers[name]


def _plain_shapes(graph: ir.Graph) -> None:
    """Every Reshape to its result's shape in numbers: two that differ only in where they say -1 become equal."""
    for node in graph:
        result = node.outputs[0].shape if node.op_type == "Reshape" else None
        if result is not None and all(isinstance(size, int) and size > 0 for size in result):
            node.replace_input_with(1, _ints(graph, [int(size) for size in result]))
            node.attributes.pop("allowzero", None)


def _root_as_divisor(graph: ir.Graph) -> None:
    """`x * (1 / sqrt(v))` as `x / sqrt(v)`: the form of RMS normalization that ONNX Runtime recognises and fuses."""
    for node in list(graph):
        root = node.inputs[0].producer() if node.op_type == "Reciprocal" else None
        uses = list(node.outputs[0].uses())
        if root is None or root.op_type != "Sqrt" or len(uses) != 1 or uses[0][0].op_type != "Mul":
            continue
        product = uses[0][0]
        other = product.inputs[1 - uses[0][1]]
        quotient = ir.node("Div", [other, root.outputs[0]], name=product.name)
        quotient.metadata_props.update(product.metadata_props)
        made, old = quotient.outputs[0], product.outputs[0]
        made.shape, made.type = old.shape, old.type
        ir.convenience.replace_nodes_and_values(graph, product, [product], [quotient], [old], [made])
        graph.remove(node, safe=True)


def _merge(graph: ir.Graph) -> None:
    """Common subexpressions: of nodes that compute the same, keep the first.

    A projection that a tap shares with its block is the block's: it keeps the block's name, so that selection is
    charged only for what it adds.
    """
    seen: dict[_Key, ir.Node] = {}
    for node in list(graph):
        key = _expression(node)
        first = seen.setdefault(key, node) if key is not None else node
        if first is node or any(value.is_graph_output() for value in node.outputs):
            continue
        if _selects(first) and not _selects(node):
            first.metadata_props.clear()
            first.metadata_props.update(node.metadata_props)
        for ours, theirs in zip(node.outputs, first.outputs, strict=True):
            if theirs.shape is None:
                theirs.shape, theirs.type = ours.shape, ours.type
            ir.convenience.replace_all_uses_with(ours, theirs)
        graph.remove(node, safe=True)


def _expression(node: ir.Node) -> _Key | None:
    """What a node computes, or None if two of them may differ (subgraphs, random numbers)."""
    attributes: list[tuple[str, Any]] = []
    for name, attribute in sorted(node.attributes.items()):
        if attribute.type in {ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS}:
            return None
        value = attribute.value
        if attribute.type is ir.AttributeType.TENSOR:
            value = identity(value)
        attributes.append((name, tuple(value) if isinstance(value, list) else value))
    if node.op_type.startswith("Random") or node.op_type in {"Multinomial", "Bernoulli"}:
        return None
    inputs = tuple(None if value is None else id(value) for value in node.inputs)
    return (node.domain, node.op_type, inputs, len(node.outputs), tuple(attributes))


def _scopes(node: ir.Node) -> list[str]:
    """The modules a node comes from, outermost first, ending with the node's own name."""
    text = node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]")
    return [part.strip("'\" ") for part in text.strip("[]").split(",") if part.strip("'\" ")]


def _selects(node: ir.Node) -> bool:
    return any(part.startswith("select_") for scope in _scopes(node)[:-1] for part in scope.split("."))


def _rename(graph: ir.Graph) -> None:
    """Names that say where a node comes from: `model/layers.0/self_attn/q_proj/MatMul`, the same in every run."""
    used: dict[str, int] = {}
    for node in graph:
        scopes = _scopes(node)
        place = scopes[-2] if len(scopes) > 1 else ""
        stem = "/".join(part for part in (SELECT if _selects(node) else "", place, node.op_type) if part)
        count = used.get(stem, 0)
        used[stem] = count + 1
        node.name = stem if count == 0 else f"{stem}_{count}"
