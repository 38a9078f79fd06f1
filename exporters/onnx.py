"""Torch modules as ONNX graphs with static shapes, in the opset that was asked for."""

import contextlib
import functools
import importlib
import inspect
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from tokcarve.exporters import cleanup, translate
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
    _keep_operators()
    try:
        with _quiet(), torch.no_grad():
            exported = torch.export.export(
                module.eval(), inputs, dynamic_shapes=_dynamic(module, input_names, opens or {}), strict=False
            )
            program = torch.onnx.export(
                exported,
                (),
                dynamo=True,
                opset_version=opset,
                optimize=False,
                verbose=False,
                input_names=list(input_names),
                output_names=list(output_names),
                custom_translation_table=translate.TRANSLATIONS,
            )
    except Exception as error:  # torch and its exporter raise errors of many kinds
        raise ExportError(f"{type(module).__name__} cannot be written as ONNX: {_reason(error)}") from error
    if program is None:
        raise ExportError(f"{type(module).__name__} cannot be written as ONNX: the exporter gave no graph")
    model = program.model
    cleanup.clean(model, names=names or {}, as_stored=as_stored)
    if opens:
        _name_open(model, opens)
    else:
        _require_static(model, type(module).__name__)
    return model


@functools.cache
def _keep_operators() -> None:
    """Lets torch keep what it read of the operators it can write, which it else reads anew for every graph, for a sixth
    of an export's time. A torch that has the reader elsewhere goes on as it does."""
    with contextlib.suppress(ImportError, AttributeError):
        proxy = importlib.import_module("torch.onnx._internal._lazy_import").onnxscript_apis
        # an attribute of the proxy comes before the module's own, which stays as it is
        proxy.get_torchlib_ops = functools.cache(proxy.get_torchlib_ops)


def _dynamic(module: nn.Module, input_names: Sequence[str], opens: Mapping[str, Mapping[int, str]]) -> Any:
    """What torch.export is told of open dimensions: an entry per argument of `forward`, the starred one a tuple."""
    if not opens:
        return None
    # a method may need a prompt of some length, so that the least size is for torch to find
    made = [dict.fromkeys(opens.get(one, {}), torch.export.Dim.DYNAMIC) for one in input_names]
    parameters = list(inspect.signature(module.forward).parameters.values())
    starred = [i for i, one in enumerate(parameters) if one.kind is inspect.Parameter.VAR_POSITIONAL]
    return (*made[: starred[0]], tuple(made[starred[0] :])) if starred else tuple(made)


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


def _reason(error: BaseException) -> str:
    """The first line of what began a chain of errors."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes about packages it could also have used from the user's screen."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
