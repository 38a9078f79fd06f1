"""Rewrites of an exported graph that keep what it computes: in place, one function each."""

from typing import Any

import numpy as np
import onnx_ir as ir

from tokcarve.exporters.tensors import identity

__all__ = [
    "SCOPES",
    "SELECT",
    "merge",
    "plain_shapes",
    "root_as_divisor",
    "rows_of_products",
    "scopes",
    "selects",
    "transposed",
    "wide_convolutions",
]

SELECT = "tokcarve_select"
"""Prefix of the names of nodes that belong to the selection of tokens."""
SCOPES = "pkg.torch.onnx.name_scopes"
"""Where torch's exporter notes the modules that a node comes from."""


def transposed(graph: ir.Graph, as_stored: frozenset[str]) -> None:
    """Replace `MatMul(x, Transpose(weight))`: a weight is stored in the layout that `MatMul` reads, and read in it by
    whatever else takes the transpose.

    ONNX Runtime would fold the transposition at load: measured on 256 MiB of weights it took twice the time and 1.5
    times the memory of reading them in the right layout; and tools that quantize look for a constant.
    """
    for node in list(graph):
        weight = node.inputs[0] if node.op_type == "Transpose" else None
        if weight is None or not weight.is_initializer() or weight.const_value is None:
            continue
        users = {user.op_type for user, _ in node.outputs[0].uses()}
        if len(weight.const_value.shape) != 2 or not users <= {"MatMul", "Gather"}:
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
    # what came out of an inlined function has no shape yet
    shape = [int(size) for size in (*rows.shape[:-1], weight.const_value.shape[0])]
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


def plain_shapes(graph: ir.Graph) -> None:
    """Every Reshape to its result's shape in numbers: two that differ only in where they say -1 become equal."""
    for node in graph:
        result = node.outputs[0].shape if node.op_type == "Reshape" else None
        if result is not None and all(isinstance(size, int) and size > 0 for size in result):
            node.replace_input_with(1, _ints(graph, [int(size) for size in result]))
            node.attributes.pop("allowzero", None)


def root_as_divisor(graph: ir.Graph) -> None:
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


def wide_convolutions(graph: ir.Graph) -> None:
    """bfloat16 convolutions in float32 between casts: ONNX knows them in bfloat16 from opset 22 on."""
    for node in [one for one in graph if one.op_type == "Conv" and one.inputs[0].dtype == ir.DataType.BFLOAT16]:
        for place, value in enumerate(node.inputs):
            if value is not None:
                node.replace_input_with(place, _cast(graph, value, ir.DataType.FLOAT, before=node))
        made = node.outputs[0]
        made.type = ir.TensorType(ir.DataType.FLOAT)
        users = list(made.uses())
        narrow = _cast(graph, made, ir.DataType.BFLOAT16, after=node)
        for user, place in users:
            user.replace_input_with(place, narrow)


def _cast(
    graph: ir.Graph, value: ir.Value, dtype: ir.DataType, *, before: ir.Node | None = None, after: ir.Node | None = None
) -> ir.Value:
    beside = before if before is not None else after
    node = ir.node("Cast", [value], attributes={"to": dtype}, name=f"{beside.name}_cast")  # type: ignore[union-attr]
    node.metadata_props.update(beside.metadata_props)  # type: ignore[union-attr]
    node.outputs[0].shape, node.outputs[0].type = value.shape, ir.TensorType(dtype)
    if before is not None:
        graph.insert_before(before, node)
    else:
        graph.insert_after(after, node)
    return node.outputs[0]


def merge(graph: ir.Graph) -> None:
    """Common subexpressions: of nodes that compute the same, keep the first.

    A projection that a tap shares with its block is the block's: it keeps the block's name, so that selection is
    charged only for what it adds.
    """
    seen: dict[tuple[Any, ...], ir.Node] = {}
    for node in list(graph):
        key = _expression(node)
        first = seen.setdefault(key, node) if key is not None else node
        if first is node or any(value.is_graph_output() for value in node.outputs):
            continue
        if selects(first) and not selects(node):
            first.metadata_props.clear()
            first.metadata_props.update(node.metadata_props)
        for ours, theirs in zip(node.outputs, first.outputs, strict=True):
            if theirs.shape is None:
                theirs.shape, theirs.type = ours.shape, ours.type
            ir.convenience.replace_all_uses_with(ours, theirs)
        graph.remove(node, safe=True)


def rows_of_products(graph: ir.Graph) -> None:
    """`x[rows] @ w` becomes `(x @ w)[rows]` where `x @ w` is there already: a tap of one row projects nothing."""
    products: dict[tuple[int, int], ir.Node] = {}
    for node in list(graph):
        if node.op_type != "MatMul" or node.inputs[1] is None or not node.inputs[1].is_initializer():
            continue
        weight, cut = node.inputs[1], node.inputs[0].producer()
        whole = products.get((id(cut.inputs[0]), id(weight))) if cut is not None and cut.op_type == "Slice" else None
        if whole is None or cut is None or cut.outputs[0].shape[-1] != cut.inputs[0].shape[-1]:
            products.setdefault((id(node.inputs[0]), id(weight)), node)
            continue
        source, target = _with_same_bias(whole, node)
        rows = ir.node("Slice", [source, *cut.inputs[1:]], name=f"{node.name}_rows")
        rows.metadata_props.update(cut.metadata_props)
        rows.outputs[0].shape, rows.outputs[0].type = target.shape, target.type
        graph.insert_before(target.producer(), rows)
        ir.convenience.replace_all_uses_with(target, rows.outputs[0])


def _with_same_bias(first: ir.Node, second: ir.Node) -> tuple[ir.Value, ir.Value]:
    """The results of two products, after their bias if both add the same one."""

    def biased(product: ir.Node) -> ir.Node | None:
        uses = [user for user, _ in product.outputs[0].uses() if user.op_type == "Add"]
        return uses[0] if len(uses) == 1 and len(product.outputs[0].uses()) == 1 else None

    ours, theirs = biased(first), biased(second)
    if ours is not None and theirs is not None and _bias(ours) is not None and _bias(ours) is _bias(theirs):
        return ours.outputs[0], theirs.outputs[0]
    return first.outputs[0], second.outputs[0]


def _bias(add: ir.Node) -> ir.Value | None:
    return next((value for value in add.inputs if value is not None and value.is_initializer()), None)


def _expression(node: ir.Node) -> tuple[Any, ...] | None:
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


def scopes(node: ir.Node) -> list[str]:
    """The modules a node comes from, outermost first, ending with the node's own name."""
    text = node.metadata_props.get(SCOPES, "[]")
    return [part.strip("'\" ") for part in text.strip("[]").split(",") if part.strip("'\" ")]


def selects(node: ir.Node) -> bool:
    """Whether a node comes from a module that was put in to select tokens."""
    return any(part.startswith("select_") for scope in scopes(node)[:-1] for part in scope.split("."))
