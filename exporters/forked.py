"""Two graphs of the same ends as one, with a third that says which of them runs (ONNX `If`); weights are shared."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from tokcarve.exporters.modules import FaceGraph
from tokcarve.exporters.onnx import OPSET, lower
from tokcarve.exporters.tensors import identity

__all__ = ["Forked", "lower_piece"]


@dataclass(frozen=True, kw_only=True)
class Forked(FaceGraph):
    """`module` gives one bool from the inputs of both: `then` runs where it is true, `otherwise` where it is not."""

    then: FaceGraph
    otherwise: FaceGraph


def lower_piece(
    piece: FaceGraph, *, names: Mapping[int, str], as_stored: Collection[str] = (), opset: int = OPSET
) -> ir.Model:
    """The ONNX graph of a piece, forked or not; the rest as in `lower`."""
    model = lower(
        piece.module,
        piece.inputs,
        input_names=piece.input_names,
        output_names=piece.output_names if not isinstance(piece, Forked) else ("condition",),
        names=names,
        as_stored=as_stored,
        opset=opset,
        opens=piece.opens,
    )
    if isinstance(piece, Forked):
        branches = {
            label: lower_piece(one, names=names, as_stored=as_stored, opset=opset)
            for label, one in (("then", piece.then), ("else", piece.otherwise))
        }
        _fork(model.graph, {label: branch.graph for label, branch in branches.items()})
    return model


def _fork(graph: ir.Graph, branches: Mapping[str, ir.Graph]) -> None:
    """Makes `graph`, whose only result is a condition, give what its branches give."""
    inputs = {value.name: value for value in graph.inputs}
    for label, branch in branches.items():
        for value in list(branch.inputs):
            ir.convenience.replace_all_uses_with(value, inputs[value.name])
        branch.inputs.clear()
        _share_weights(graph, branch, label)
        for node in branch:
            node.name = f"{node.name}.{label}"
            for value in node.outputs:
                value.name = f"{value.name}.{label}"
    ends = [(one.name.removesuffix(".else"), one.shape, one.type) for one in branches["else"].outputs]
    fork = ir.node(
        "If",
        [graph.outputs[0]],
        attributes={f"{label}_branch": branch for label, branch in branches.items()},
        num_outputs=len(ends),
        name="If",
    )
    graph.append(fork)
    graph.outputs.clear()
    for made, (name, shape, kind) in zip(fork.outputs, ends, strict=True):
        made.name, made.shape, made.type = name, shape, kind
        graph.outputs.append(made)


def _share_weights(graph: ir.Graph, branch: ir.Graph, label: str) -> None:
    """Initializers of a branch become those of `graph`: the same tensor once, others of one name apart."""
    taken = {value.name for node in graph for value in node.outputs} | {value.name for value in graph.inputs}
    for value in list(branch.initializers.values()):
        known = graph.initializers.get(value.name)
        del branch.initializers[value.name]
        if known is not None and identity(known.const_value) == identity(value.const_value):
            ir.convenience.replace_all_uses_with(value, known)
            continue
        if known is not None or value.name in taken:
            value.name = f"{value.name}.{label}"
        graph.register_initializer(value)
