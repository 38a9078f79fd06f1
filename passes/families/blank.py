"""A family's model whose large weights are not read: enough to trace it, whatever its size, and to find them later.

Memory that torch reserves is not resident until it is touched, so a blank weight costs nothing; its address stands for
the tensor of the checkpoint that belongs there.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tokcarve.passes.checkpoint import Checkpoint
from tokcarve.passes.errors import ModelError
from tokcarve.passes.families.load import build_model, read_config
from tokcarve.passes.shards import TensorEntry, read_header

__all__ = ["DTYPES", "Blank", "Stored", "blank_model"]

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Of weights that a model is made of, as safetensors calls them."""

_AS_BYTES: dict[int, type[np.unsignedinteger]] = {2: np.uint16, 4: np.uint32, 8: np.uint64}
READ_BELOW = 2**16
"""Bytes in the wanted dtype below which a weight is read at once: the graphs store small ones themselves."""


@dataclass(frozen=True, kw_only=True)
class Stored:
    """A tensor of a checkpoint: where it lies."""

    path: Path
    name: str
    entry: TensorEntry

    def view(self) -> Tensor:
        """The tensor as it is stored, mapped into memory and read where it is touched; do not write to it."""
        dtype, shape = DTYPES[self.entry.dtype], self.entry.shape
        if not all(shape):
            return torch.empty(shape, dtype=dtype)
        kind = _AS_BYTES[dtype.itemsize]
        mapped = np.memmap(self.path, kind, mode="r", offset=self.entry.start, shape=shape or (1,))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it is read-only is meant
            return torch.from_numpy(mapped).view(dtype).reshape(shape)


@dataclass(frozen=True, kw_only=True)
class Blank:
    """A model on the CPU without its large weights, and by the address of each weight what belongs there."""

    model: nn.Module
    stored: Mapping[int, Stored]


def blank_model(checkpoint: Checkpoint, *, dtype: torch.dtype = torch.float32) -> Blank:
    """The model of `checkpoint` in `dtype`; ModelError as for `read_model`, and for weights of another kind than
    floating point."""
    tensors, stored = dict[str, Tensor](), dict[int, Stored]()
    for shard in checkpoint.shards:
        for name, entry in read_header(shard).items():
            if entry.dtype not in DTYPES:
                raise ModelError(
                    f"{shard}: tensor {name!r} is {entry.dtype}, and weights must be of {', '.join(DTYPES)}; get a "
                    "checkpoint that is not quantised"
                )
            one = Stored(path=shard, name=name, entry=entry)
            tensors[name] = torch.empty(entry.shape, dtype=dtype)
            if tensors[name].nbytes < READ_BELOW:
                tensors[name].copy_(one.view())
            stored[tensors[name].data_ptr()] = one
    model = build_model(read_config(checkpoint.path), checkpoint.path, dtype=dtype, tensors=tensors)
    for name, weight in model.named_parameters():
        if weight.nbytes >= READ_BELOW and weight.data_ptr() not in stored:
            raise ModelError(
                f"weight {name!r} is no tensor of {checkpoint.path} but is made of several; save the checkpoint again "
                "with the transformers installed here"
            )
    return Blank(model=model, stored=stored)
