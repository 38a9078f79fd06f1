"""The proof of an export: its files against the ONNX rules, and ONNX Runtime against torch, with a test of power."""

import itertools
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
from tokcarve.passes.errors import CheckError
from tokcarve.passes.families.blank import Stored
from tokcarve.passes.router import Router

__all__ = ["check_numbers", "check_power", "check_router", "check_weights", "require"]

_WHOLE = 2**22
_BLOCK = (16, 256)  # rows and columns of a block


def check_weights(paths: Sequence[Path], named: Mapping[str, Tensor], stored: Mapping[int, Stored]) -> Check:
    """Every weight that the graphs read, bit for bit against the checkpoint's tensor of that name, converted: wholly up
    to 4 MiB, in blocks spread over it above.

    `named` has the model's own tensors and `stored` what belongs at their addresses; one that is not there, such as a
    constant of the model, is compared as it is. A name that ends in `.T` holds the transpose. Large tensors that are no
    weights (a method's constants) are counted.
    """
    compared, constants = 0, set()
    for path in paths:
        for name, found in _external(path):
            weight = named.get(name.removesuffix(".T"))
            if weight is None:
                constants.add(name)
                continue
            origin = stored.get(weight.data_ptr())
            expected = weight.detach() if origin is None else origin.view()
            expected = expected.t() if name.endswith(".T") else expected
            same = (_same(found[block], expected[block].to(weight.dtype)) for block in _blocks(found))
            if found.shape != tuple(expected.shape) or not all(same):
                return Check(name="weights", passed=False, detail=f"{name!r} of {path.name} is not the checkpoint's")
            compared += 1
    detail = f"{compared} tensors equal the checkpoint's, {len(constants)} constants are not weights"
    return Check(name="weights", passed=compared > 0, detail=detail)


def _same(found: NDArray[np.generic], expected: Tensor) -> bool:
    return bool(np.array_equal(found, expected.numpy()))


def _blocks(found: NDArray[np.generic]) -> Iterator[tuple[slice, ...]]:
    """The whole of an array, or of a large matrix 8 x 8 blocks from corner to corner."""
    if found.nbytes <= _WHOLE or found.ndim != 2:
        yield (slice(None),)
        return
    sizes = [min(side, most) for side, most in zip(found.shape, _BLOCK, strict=True)]
    for row, column in itertools.product(range(8), repeat=2):
        starts = [(side - size) * at // 7 for side, size, at in zip(found.shape, sizes, (row, column), strict=True)]
        yield tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))


def _external(path: Path) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """The weights of a graph, mapped from their file here: onnx_ir reads none from a file that has two names."""
    for value in ir.load(path).graph.initializers.values():
        one = value.const_value
        if isinstance(one, ir.ExternalTensor):
            shape = tuple(one.shape.numpy())
            yield str(value.name), np.memmap(path.parent / one.location, one.dtype.numpy(), "r", one.offset or 0, shape)


def check_numbers(
    pipeline: Pipeline, samples: Sequence[Question], expected: Sequence[Reference], *, side: str, dtype: str = "float32"
) -> list[Check]:
    """ONNX Runtime against torch on the samples, as `compare.check_numbers` has it."""
    return compare.check_numbers(pipeline, [asked(one) for one in samples], said(expected), side=side, dtype=dtype)


def check_power(golden: Golden, dtype: str = "float32") -> Check:
    """Whether the comparison could have failed, as `compare.check_power` has it."""
    return compare.check_power(said(golden.pruned), said(golden.plain), dtype)


def check_router(graph: Graph, router: Router, samples: Sequence[Question], dtype: str = "float32") -> Check:
    """The losses that ONNX Runtime predicts of the samples against torch, as `compare.check_losses` has it."""
    pixels = torch.cat([sample.pixel_values for sample in samples])
    with torch.no_grad():
        expected = torch.cat([router(one[None]) for one in pixels])
    return compare.check_losses(graph, pixels.numpy(), expected.numpy(), dtype)


def require(checks: Sequence[Check]) -> None:
    """CheckError that names the first check that did not hold."""
    failed = [check for check in checks if not check.passed]
    if failed:
        more = f" ({len(failed) - 1} further checks failed)" if len(failed) > 1 else ""
        raise CheckError(f"the export does not hold and was not written: {failed[0].name}: {failed[0].detail}{more}")
