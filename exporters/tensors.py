"""What the passes over an exported graph know about its tensors without reading them."""

from typing import Any

import onnx_ir as ir

__all__ = ["SMALL", "address", "identity"]

SMALL = 1024
"""Bytes below which a tensor counts as a constant of the graph and not as a weight."""


def identity(tensor: ir.TensorProtocol) -> tuple[Any, ...]:
    """Equal exactly for tensors that are known to hold the same data without reading more than 1 KiB of it."""
    shape = tuple(tensor.shape.numpy())
    if isinstance(tensor, ir.LazyTensor):
        return (tensor.dtype, shape, id(tensor))
    where = address(tensor)
    if where is not None:
        return (tensor.dtype, shape, where, tensor.raw.stride())
    if tensor.nbytes < SMALL:
        return (tensor.dtype, shape, tensor.tobytes())
    return (tensor.dtype, shape, id(tensor))


def address(tensor: ir.TensorProtocol) -> int | None:
    """Where the data of a weight lies in memory; None for a tensor that torch does not hold."""
    # what is made when it is asked for is not asked here
    raw: Any = None if isinstance(tensor, ir.LazyTensor) else getattr(tensor, "raw", None)
    # a tensor without data (on the meta device) lies nowhere
    return (int(raw.data_ptr()) or None) if hasattr(raw, "data_ptr") else None
