"""What torch and its ONNX exporter make of a module at the shapes of example inputs, before any pass of ours."""

import contextlib
import copy
import functools
import importlib
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from tokcarve.exporters import translate
from tokcarve.passes.errors import ExportError

__all__ = ["trace"]


def trace(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    *,
    input_names: Sequence[str],
    output_names: Sequence[str] | None = None,
    opset: int,
    opens: Mapping[str, Mapping[int, str]] | None = None,
) -> ir.Model:
    """The ONNX graph of `module`, its weights still those of the module; the rest as in `lower`.

    Raises ExportError naming what torch or its exporter could not trace.
    """
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
                output_names=list(output_names) if output_names is not None else None,
                custom_translation_table=translate.TRANSLATIONS,
            )
    except Exception as error:  # torch and its exporter raise errors of many kinds
        raise ExportError(f"{type(module).__name__} cannot be written as ONNX: {_reason(error)}") from error
    if program is None:
        raise ExportError(f"{type(module).__name__} cannot be written as ONNX: the exporter gave no graph")
    return program.model


@functools.cache
def _keep_operators() -> None:
    """Lets torch keep what it knows of the operators it can write, which it else reads and looks through anew for every
    graph, for two thirds of a small one's time. A torch that has it elsewhere goes on as it does."""
    with contextlib.suppress(ImportError, AttributeError):
        registry = importlib.import_module("torch.onnx._internal.exporter._registration").ONNXRegistry
        read = functools.cache(registry.from_torchlib)

        def kept(*opset: int, **named: int) -> Any:
            # what is registered for one graph is not for the next
            made = copy.copy(read(*opset, **named))
            made.functions = {target: list(known) for target, known in made.functions.items()}
            return made

        registry.from_torchlib = staticmethod(kept)


def _dynamic(module: nn.Module, input_names: Sequence[str], opens: Mapping[str, Mapping[int, str]]) -> Any:
    """What torch.export is told of open dimensions: an entry per argument of `forward`, the starred one a tuple."""
    if not opens:
        return None
    # a method may need a prompt of some length, so that the least size is for torch to find
    made = [dict.fromkeys(opens.get(one, {}), torch.export.Dim.DYNAMIC) for one in input_names]
    parameters = list(inspect.signature(module.forward).parameters.values())
    starred = [i for i, one in enumerate(parameters) if one.kind is inspect.Parameter.VAR_POSITIONAL]
    return (*made[: starred[0]], tuple(made[starred[0] :])) if starred else tuple(made)


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
