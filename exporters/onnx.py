"""Torch modules as ONNX graphs with static shapes, in the opset that was asked for."""

from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir
from torch import Tensor, nn

from tokcarve.exporters import cleanup
from tokcarve.exporters.repeats import put_blocks, stand_ins
from tokcarve.exporters.trace import trace
from tokcarve.passes.errors import ExportError

__all__ = ["OPSET", "OPSETS", "lower", "weight_names"]

OPSET = 18
"""What graphs are written in unless told: every supported TensorRT reads it."""
OPSETS = range(18, 24)
"""What they can be written in: torch converts no graph to less, and attention is decomposed in all of them."""


def weight_names(model: nn.Module) -> dict[int, str]:
    """Address of the data of every parameter and buffer -> its name in `model`; the first of a tied pair wins."""
    names: dict[int, str] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        names.setdefault(tensor.data_ptr(), name)
    return names


def lower(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    *,
    input_names: Sequence[str],
    output_names: Sequence[str],
    names: Mapping[int, str] | None = None,
    as_stored: Collection[str] = (),
    opset: int = OPSET,
    opens: Mapping[str, Mapping[int, str]] | None = None,
) -> ir.Model:
    """The ONNX graph of `module` at the shapes of `inputs`, its weights still those of the module (nothing is copied).

    `names` as `weight_names` gives them; a parameter of `module` that is not there keeps the module's name for it.
    `as_stored` as in `cleanup.clean`, `opset` one of OPSETS, `opens` as in FaceGraph. Raises ExportError naming what
    torch or its exporter could not trace.
    """
    if len(inputs) != len(input_names):
        raise ExportError(f"a graph with the inputs {list(input_names)} was given {len(inputs)} example tensors")
    with stand_ins(module) as uses:
        model = trace(module, inputs, input_names=input_names, output_names=output_names, opset=opset, opens=opens)
    cleanup.fold(model)
    put_blocks(model, uses, opset)
    cleanup.clean(model, names=names or {}, as_stored=as_stored)
    if opens:
        _name_open(model, opens)
    else:
        _require_static(model, type(module).__name__)
    return model


def _name_open(model: ir.Model, opens: Mapping[str, Mapping[int, str]]) -> None:
    """Open dimensions of both ends get the names that they were given: torch calls them by sums of its own."""
    for value in (*model.graph.inputs, *model.graph.outputs):
        places = opens.get(str(value.name), {})
        if places and value.shape is not None:
            value.shape = ir.Shape([places.get(at, size) for at, size in enumerate(value.shape)])


def _require_static(model: ir.Model, what: str) -> None:
    for node in model.graph:
        for value in node.outputs:
            if value.shape is not None and not value.shape.is_static():
                raise ExportError(
                    f"{what} cannot be written with constant shapes: the result of {node.name} has {value.shape}; "
                    "choose a constant count instead"
                )
