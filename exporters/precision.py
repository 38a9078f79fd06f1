"""What `--precision` can be: the type in which graphs compute, and the bits of the language model's matrices.

Precision is in the graphs themselves, for TensorRT 11 has no flag for it. Graphs are traced from a model of that dtype,
so that every type is the model's own: what transformers computes in float32 (the statistics of RMS norms, RoPE) and the
scores by which a method chooses stay float32 between casts; layer norms keep float32 statistics by ONNX's own rule.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from tokcarve.passes.errors import ExportError
from tokcarve.passes.graph import Parts

__all__ = ["PRECISIONS", "Precision", "block_of", "bytes_each", "matrices", "needed_opset", "precision_of"]

_BLOCKS = (128, 64, 32, 16)
# blocked scales came with opset 21, float16 scales with 19
_NEEDED = {"int8": 19, "int4": 21}


@dataclass(frozen=True, kw_only=True)
class Precision:
    """`dtype` is what graphs compute in and what every weight is stored in that is not quantised to `bits`; 0 bits mean
    that none is."""

    name: Literal["fp32", "fp16", "bf16", "int8", "int4"]
    dtype: torch.dtype
    bits: int = 0

    @property
    def type_name(self) -> Any:
        """The dtype as a record spells it."""
        return str(self.dtype).removeprefix("torch.")


PRECISIONS: Mapping[str, Precision] = {
    one.name: one
    for one in (
        Precision(name="fp32", dtype=torch.float32),
        Precision(name="fp16", dtype=torch.float16),
        Precision(name="bf16", dtype=torch.bfloat16),
        Precision(name="int8", dtype=torch.float16, bits=8),
        Precision(name="int4", dtype=torch.float16, bits=4),
    )
}
"""int8 and int4 are weights alone, of the matrices in the language model's layers: embedding table, head, projector and
vision tower stay float16, and so does what is computed with them."""


def precision_of(name: str) -> Precision:
    """The precision of that name; ExportError for another."""
    if name not in PRECISIONS:
        raise ExportError(f"--precision {name} is none that export writes; give one of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def needed_opset(precision: str, face: str) -> int:
    """The oldest opset that can say this precision; the same in every face, for faces share their graphs."""
    return _NEEDED.get(precision, 18)


def bytes_each(name: str) -> float:
    """Bytes of one weight at least, for estimates made before a checkpoint is read."""
    one = PRECISIONS.get(name)
    return 1.0 if one is None else one.bits / 8 or float(one.dtype.itemsize)


def matrices(parts: Parts) -> frozenset[int]:
    """Addresses of the weights that int8 and int4 quantise: every linear layer of the language model's blocks."""
    layers = (module for block in parts.text_blocks for module in block.modules() if isinstance(module, nn.Linear))
    return frozenset(layer.weight.data_ptr() for layer in layers)


def block_of(rows: int, bits: int) -> int | None:
    """How many of the `rows` that a product sums over share a scale: all of them in int8, a block in int4; None for
    rows that make no whole blocks, which TensorRT does not read."""
    if bits == 8:
        return rows
    return next((block for block in _BLOCKS if rows % block == 0), None)
