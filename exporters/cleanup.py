"""What an exported graph goes through before it is written: in-place passes over an `onnx_ir` model.

The exporter's own optimiser is not used: it reads every weight, takes longer than the export, and folds transposed
weights into constants without a name. These passes read no weight above 1 KiB.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import onnx_ir as ir
from onnx_ir.passes import common
from onnxscript import optimizer

from tokcarve.exporters import rewrites
from tokcarve.exporters.tensors import address, identity

__all__ = ["clean", "fold"]

# numbers of a shape or an index, never a mask: what a runtime can compute at load is not stored
_FEW = 64


def fold(model: ir.Model) -> None:
    """Computes what follows from shapes and small constants alone, in place, and calls no functions any more."""
    common.InlinePass()(model)
    weights = frozenset(model.graph.initializers)
    optimizer.fold_constants(model, input_size_limit=_FEW, output_size_limit=_FEW, should_fold=_all_but(weights))
    common.RemoveUnusedNodesPass()(model)


def clean(model: ir.Model, *, names: Mapping[int, str], as_stored: Collection[str] = ()) -> None:
    """Make a folded `model` small, readable and free of repetition, in place.

    `names` gives the name of a weight by the address of its data. Weights in `as_stored` are read untransposed by
    another graph and keep their layout; every other weight that is only used transposed is stored transposed.
    """
    outputs = [value.name for value in model.graph.outputs]
    _share(model.graph)
    _name_weights(model.graph, names)
    rewrites.transposed(model.graph, frozenset(as_stored))
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _share(model.graph)
    common.IdentityEliminationPass()(model)
    rewrites.wide_convolutions(model.graph)
    rewrites.root_as_divisor(model.graph)
    rewrites.plain_shapes(model.graph)
    rewrites.merge(model.graph)
    rewrites.rows_of_products(model.graph)
    common.RemoveUnusedNodesPass()(model)
    common.OutputFixPass()(model)
    for value, name in zip(model.graph.outputs, outputs, strict=True):
        # two outputs that are one value were left with one name
        value.name = name
    _rename(model.graph)
    common.ClearMetadataAndDocStringPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    # its data propagation takes an index of as many prompts as the batch has for a shape, and fails
    common.ShapeInferencePass(data_prop=False)(model)
    model.producer_name, model.producer_version = "tokcarve", None


def _all_but(weights: frozenset[str]) -> Callable[[ir.Node], bool | None]:
    """Leave every weight alone, however small: folded, it would lose its name."""
    return lambda node: False if any(value is not None and value.name in weights for value in node.inputs) else None


def _share(graph: ir.Graph) -> None:
    """One initializer per tensor."""
    seen: dict[tuple[Any, ...], ir.Value] = {}
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
        where = address(value.const_value) if value.const_value is not None else None
        name = names.get(where) if where is not None else None
        if name is not None and name != value.name and name not in graph.initializers:
            value.name = name


def _rename(graph: ir.Graph) -> None:
    """Names that say where a node comes from: `model/layers.0/self_attn/q_proj/MatMul`, the same in every run."""
    used: dict[str, int] = {}
    for node in graph:
        scopes = rewrites.scopes(node)
        place = scopes[-2] if len(scopes) > 1 else ""
        stem = "/".join(
            part for part in (rewrites.SELECT if rewrites.selects(node) else "", place, node.op_type) if part
        )
        count = used.get(stem, 0)
        used[stem] = count + 1
        node.name = stem if count == 0 else f"{stem}_{count}"
