"""The proof of an export: its files against the ONNX rules, and ONNX Runtime against torch, with a test of power."""

import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokcarve.exporters.device import compare, losses
from tokcarve.exporters.device.compare import Check
from tokcarve.exporters.device.pipeline import Pipeline
from tokcarve.exporters.device.session import Graph
from tokcarve.exporters.golden import Golden, Reference, asked, said
from tokcarve.exporters.quantise import PART, SCALE, quantised, unpacked
from tokcarve.passes.asking import Question
from tokcarve.passes.errors import CheckError
from tokcarve.passes.families.blank import DTYPES, Stored
from tokcarve.passes.router import Router

__all__ = ["check_numbers", "check_power", "check_router", "check_weights", "require"]

_WHOLE = 2**22
_BLOCK, _PLACES = 8, 8  # rows and columns of a block, and blocks along a diagonal
_COLUMNS = 64  # of a quantised matrix that are quantised again, at 8 places


def check_weights(paths: Sequence[Path], named: Mapping[str, Tensor], stored: Mapping[int, Stored]) -> Check:
    """Every weight that the graphs read, bit for bit against the checkpoint's tensor of that name, converted or
    quantised again: wholly up to 4 MiB, in blocks along both diagonals above.

    `named` has the model's own tensors and `stored` what belongs at their addresses; one that is not there, such as a
    constant of the model, is compared as it is. A name that ends in `.T` holds the transpose. Large tensors that are no
    weights (a method's constants) are counted.
    """
    compared, constants, known = 0, set(), set[Any]()
    for path in paths:
        graph = ir.load(path).graph
        for name, value in graph.initializers.items():
            if not isinstance(value.const_value, ir.ExternalTensor) and not name.endswith(PART):
                continue
            weight = named.get(name.removesuffix(PART).removesuffix(SCALE).removesuffix(".T"))
            if weight is None:
                constants.add(name)
                continue
            if name.endswith(SCALE):
                continue  # with its integers
            compared += 1
            claim = _claim(path, name, graph)
            if claim in known:
                continue
            origin = stored.get(weight.data_ptr())
            expected = weight.detach() if origin is None else origin.view()
            expected = expected.t() if name.removesuffix(PART).endswith(".T") else expected
            found = _array(path, value)
            if name.endswith(PART):
                scale = _array(path, graph.initializers[f"{name.removesuffix(PART)}{SCALE}"])
                same = _same_quantised(found, scale, expected, 8 if value.dtype == ir.DataType.INT8 else 4)
            else:
                _ask(found, origin)
                same = _same(found, expected, weight.dtype)
            if not same:
                return Check(name="weights", passed=False, detail=f"{name!r} of {path.name} is not the checkpoint's")
            if claim is not None:
                known.add(claim)
    detail = f"{compared} tensors equal the checkpoint's, {len(constants)} constants are not weights"
    return Check(name="weights", passed=compared > 0, detail=detail)


def _claim(path: Path, name: str, graph: ir.Graph) -> tuple[Any, ...] | None:
    """What a graph says of a weight: graphs that say the same are right or wrong together. None where a graph holds
    numbers of it itself."""
    found: list[Any] = [path.parent, name]
    for part in (name, f"{name.removesuffix(PART)}{SCALE}") if name.endswith(PART) else (name,):
        one = graph.initializers[part].const_value
        if not isinstance(one, ir.ExternalTensor):
            return None
        found += [one.location, one.offset, one.length, one.dtype, *one.shape.numpy()]
    return tuple(found)


def _same(found: NDArray[Any], expected: Tensor, dtype: torch.dtype) -> bool:
    if found.shape != tuple(expected.shape) or found.dtype.itemsize != dtype.itemsize:
        return False
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]  # NumPy knows no bfloat16
    pairs = (
        (found[block], expected[block].to(dtype).contiguous().view(bits).numpy())
        for block in _blocks(found.shape, found.nbytes)
    )
    return all(np.array_equal(ours.view(theirs.dtype), theirs) for ours, theirs in pairs)


def _same_quantised(ints: NDArray[Any], scale: NDArray[Any], expected: Tensor, bits: int) -> bool:
    """Columns are quantised apart from each other, so some of them stand for a large matrix."""
    if ints.shape != tuple(expected.shape):
        return False
    columns, few = ints.shape[1], _COLUMNS
    starts = [0] if ints.nbytes <= _WHOLE else [(columns - few) * at // 7 // 2 * 2 for at in range(8)]
    for start in starts:
        part = slice(start, start + few if len(starts) > 1 else columns)
        again = quantised(expected[:, part], bits)
        if not (np.array_equal(ints[:, part], again[0]) and np.array_equal(scale[..., part], again[1])):
            return False
    return True


def _blocks(shape: Sequence[int], size: int) -> Iterator[tuple[slice, ...]]:
    """The whole of an array of `size` bytes, or blocks of a large matrix, from each of its corners to the one across;
    of its transpose the same."""
    if size <= _WHOLE or len(shape) != 2:
        yield (slice(None),)
        return
    for at, across in itertools.product(range(_PLACES), (False, True)):
        places = (at, _PLACES - 1 - at if across else at)
        starts = [max(0, side - _BLOCK) * place // (_PLACES - 1) for side, place in zip(shape, places, strict=True)]
        yield tuple(slice(start, min(start + _BLOCK, side)) for start, side in zip(starts, shape, strict=True))


def _ask(found: NDArray[Any], origin: Stored | None) -> None:
    """Has the disk read the blocks of a large matrix, in both files, all at once: each would else be waited for, with
    much of what lies around it."""
    if origin is None or not isinstance(found, np.memmap) or found.nbytes <= _WHOLE or not hasattr(os, "posix_fadvise"):
        return
    theirs, width = origin.entry, DTYPES[origin.entry.dtype].itemsize
    for path, start, shape, each in (
        (Path(str(found.filename)), found.offset, found.shape, found.itemsize),
        (origin.path, theirs.start, theirs.shape, width),
    ):
        blocks = [block for block in _blocks(shape, found.nbytes) if len(block) == 2]
        with path.open("rb") as stream:
            for row, columns in ((row, columns) for rows, columns in blocks for row in range(rows.start, rows.stop)):
                at, count = start + (row * shape[1] + columns.start) * each, (columns.stop - columns.start) * each
                os.posix_fadvise(stream.fileno(), at, count, os.POSIX_FADV_WILLNEED)


def _array(path: Path, value: ir.Value) -> NDArray[Any]:
    """An initializer, mapped from its file here: onnx_ir reads none from a file that has two names. Integers of 4 bits
    come as int8."""
    one: Any = value.const_value
    four, shape = one.dtype == ir.DataType.INT4, tuple(one.shape.numpy())
    if not isinstance(one, ir.ExternalTensor):
        return unpacked(np.frombuffer(one.tobytes(), np.uint8), shape) if four else np.asarray(one.numpy())
    place, offset = path.parent / one.location, one.offset or 0
    if four:
        return unpacked(np.memmap(place, np.uint8, "r", offset, (one.length,)), shape)
    return np.memmap(place, one.dtype.numpy(), "r", offset, shape)


def check_numbers(
    pipeline: Pipeline, samples: Sequence[Question], expected: Sequence[Reference], *, side: str, dtype: str = "float32"
) -> list[Check]:
    """ONNX Runtime against torch on the samples, as `compare.check_numbers` has it."""
    return compare.check_numbers(pipeline, [asked(one) for one in samples], said(expected), side=side, dtype=dtype)


def check_power(golden: Golden, dtype: str = "float32") -> Check:
    """Whether the comparison could have failed, as `compare.check_power` has it."""
    return compare.check_power(said(golden.pruned), said(golden.plain), dtype)


def check_router(graph: Graph, router: Router, samples: Sequence[Question], dtype: str = "float32") -> Check:
    """The losses that ONNX Runtime predicts of the samples against torch, as `losses.check_losses` has it."""
    pixels = torch.cat([sample.pixel_values for sample in samples])
    with torch.no_grad():
        expected = torch.cat([router(one[None]) for one in pixels])
    return losses.check_losses(graph, pixels.numpy(), expected.numpy(), dtype)


def require(checks: Sequence[Check]) -> None:
    """CheckError that names the first check that did not hold."""
    failed = [check for check in checks if not check.passed]
    if failed:
        more = f" ({len(failed) - 1} further checks failed)" if len(failed) > 1 else ""
        raise CheckError(f"the export does not hold and was not written: {failed[0].name}: {failed[0].detail}{more}")
