"""What `--precision` can be: the type in which graphs compute, and the bits of the language model's matrices.

Precision is in the graphs themselves, for TensorRT 11 has no flag for it. Graphs are traced from a model of that dtype,
so that every type is the model's own: what transformers computes in float32 (the statistics of RMS norms, RoPE) and the
scores by which a method chooses stay float32 between casts; layer norms keep float32 statistics by ONNX's own rule.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tokcarve.passes.errors import ExportError

if TYPE_CHECKING:
    import torch

__all__ = ["PRECISIONS", "Precision", "block_of", "bytes_each", "matrix_bytes", "needed_opset", "precision_of"]

_BLOCKS = (128, 64, 32, 16)
# blocked scales came with opset 21, float16 scales with 19
_NEEDED = {"int8": 19, "int4": 21}


@dataclass(frozen=True, kw_only=True)
class Precision:
    """`computes` names the type that graphs compute in, and in which every weight is stored that is not quantised to
    `bits`; 0 bits mean that none is."""

    name: Literal["fp32", "fp16", "bf16", "int8", "int4"]
    computes: Literal["float32", "float16", "bfloat16"]
    bits: int = 0

    @property
    def dtype(self) -> "torch.dtype":
        """That type in torch, which whoever proves an export again need not have."""
        import torch

        return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[self.computes]


PRECISIONS: Mapping[str, Precision] = {
    one.name: one
    for one in (
        Precision(name="fp32", computes="float32"),
        Precision(name="fp16", computes="float16"),
        Precision(name="bf16", computes="bfloat16"),
        Precision(name="int8", computes="float16", bits=8),
        Precision(name="int4", computes="float16", bits=4),
    )
}
"""int8 and int4 are weights alone, of the matrices in the language model's layers: embedding table, head, projector and
vision tower stay float16, and so does what is computed with them."""


def precision_of(name: str, *, refer: bool = False) -> Precision:
    """The precision of that name; ExportError for another, and for one that no weight can have in the checkpoint's own
    file where weights are to stay there (`refer`)."""
    if name not in PRECISIONS:
        raise ExportError(f"--precision {name} is none that export writes; give one of {', '.join(PRECISIONS)}")
    if refer and PRECISIONS[name].bits:
        raise ExportError(
            f"--reference-weights leaves weights in the checkpoint's files as they are, and --precision {name} "
            "quantises them; leave one of the two out"
        )
    return PRECISIONS[name]


def needed_opset(precision: str, face: str) -> int:
    """The oldest opset that can say this precision; the same in every face, for faces share their graphs."""
    return _NEEDED.get(precision, 18)


def bytes_each(name: str) -> float:
    """Bytes of one weight at least, for estimates made before a checkpoint is read."""
    one = PRECISIONS.get(name)
    return 1.0 if one is None else one.bits / 8 or {"float32": 4.0}.get(one.computes, 2.0)


def block_of(rows: int, bits: int) -> int | None:
    """How many of the `rows` that a product sums over share a scale: all of them in int8, a block in int4; None for
    rows that make no whole blocks, which TensorRT does not read."""
    if bits == 8:
        return rows
    return next((block for block in _BLOCKS if rows % block == 0), None)


def matrix_bytes(shape: Sequence[int], precision: Precision) -> tuple[int, int]:
    """Bytes of the integers and of the scales of a matrix [rows, columns]; all of it the former where it has none."""
    rows, columns = shape
    block = block_of(rows, precision.bits) if precision.bits else None
    if block is None:
        return rows * columns * (4 if precision.computes == "float32" else 2), 0
    return (rows * columns * precision.bits + 7) // 8, rows // block * columns * 2
