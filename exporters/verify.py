"""The proof of an export: its files against the ONNX rules, and ONNX Runtime against torch, with a test of power."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokcarve.exporters.device import compare
from tokcarve.exporters.device.compare import Check
from tokcarve.exporters.device.pipeline import Pipeline
from tokcarve.exporters.device.session import Graph
from tokcarve.exporters.golden import Golden, Reference, asked, said
from tokcarve.passes.asking import Question
from tokcarve.passes.router import Router

__all__ = ["check_numbers", "check_power", "check_router", "check_weights"]


def check_weights(paths: Sequence[Path], named: Mapping[str, Tensor]) -> Check:
    """Every weight that the graphs read, byte for byte against the model's own tensor of that name.

    A name that ends in `.T` holds the transpose. Large tensors that are no weights (a method's constants) are counted.
    """
    compared, constants = 0, set()
    for path in paths:
        for name, found in _external(path):
            weight = named.get(name.removesuffix(".T"))
            if weight is None:
                constants.add(name)
                continue
            expected = (weight.t() if name.endswith(".T") else weight).detach().numpy()
            if found.shape != expected.shape or not np.array_equal(found, expected):
                return Check(name="weights", passed=False, detail=f"{name!r} of {path.name} is not the checkpoint's")
            compared += 1
    detail = f"{compared} tensors equal the checkpoint's, {len(constants)} constants are not weights"
    return Check(name="weights", passed=compared > 0, detail=detail)


def _external(path: Path) -> Iterator[tuple[str, NDArray[np.generic]]]:
    for value in ir.load(path).graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            yield str(value.name), value.const_value.numpy()


def check_numbers(
    pipeline: Pipeline, samples: Sequence[Question], expected: Sequence[Reference], *, side: str, dtype: str = "float32"
) -> list[Check]:
    """ONNX Runtime against torch on the samples, as `compare.check_numbers` has it."""
    return compare.check_numbers(pipeline, [asked(one) for one in samples], said(expected), side=side, dtype=dtype)


def check_power(golden: Golden, dtype: str = "float32") -> Check:
    """Whether the comparison could have failed, as `compare.check_power` has it."""
    return compare.check_power(said(golden.pruned), said(golden.plain), dtype)


def check_router(graph: Graph, router: Router, samples: Sequence[Question], dtype: str = "float32") -> Check:
    """The losses that ONNX Runtime predicts of the samples against torch."""
    batch, pairs = graph.shapes["pixel_values"][0], []
    for start in range(0, len(samples), batch):
        pixels = torch.cat([sample.pixel_values for sample in samples[start : start + batch]])
        with torch.no_grad():
            pairs.append((graph.run({"pixel_values": pixels.numpy()})["losses"], router(pixels).numpy()))
    return compare.close("router: predicted losses", pairs, dtype)
