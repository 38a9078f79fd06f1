"""What this machine can do at best, measured by ONNX Runtime itself: numbers computed and bytes read per second.

A chain of matrix products, whose matrices together are larger than processor caches, is run with many rows, where
arithmetic takes the time, and with one row, where reading the matrices does. Their quotient is the machine's balance:
work that computes fewer FLOPs per byte that it reads is bound by memory (Williams, Waterman and Patterson, "Roofline",
2009). The chain is written as ONNX by hand, for no device has the `onnx` package.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from time import perf_counter

import numpy as np
import onnxruntime as ort

from tokcarve.exporters.device.session import Array, Face, start

__all__ = ["Balance", "measure_balance"]

_WIDTH, _MATRICES, _ROWS, _MOST_ROWS, _TRIES = 2048, 8, 64, 4096, 3
_KINDS = {"float32": (1, np.float32), "float16": (10, np.float16)}
"""ONNX's number of a dtype, and NumPy's name for it."""


@dataclass(frozen=True, kw_only=True)
class Balance:
    """FLOPs (2 per multiply-add) and bytes per second, each the best of several runs."""

    flops: float
    bytes: float

    @property
    def flops_per_byte(self) -> float:
        """Below this many, the time goes into reading."""
        return self.flops / self.bytes

    def record(self) -> dict[str, float]:
        """These figures as JSON."""
        return {
            "gflops_per_second": self.flops / 1e9,
            "gib_per_second": self.bytes / 2**30,
            "flops_per_byte": self.flops_per_byte,
        }


def measure_balance(face: Face) -> Balance | None:
    """What the provider of `face` can do in its dtype and with its threads, measured once per process; None where its
    dtype is not measured."""
    return _measured(face.record.dtype, face.threads, face.providers) if face.record.dtype in _KINDS else None


@cache
def _measured(dtype: str, threads: int | None, providers: tuple[str, ...]) -> Balance:
    number, kind = _KINDS[dtype]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
    matrix = np.full((_WIDTH, _WIDTH), 1 / _WIDTH, kind)
    session = start(Path("balance"), options, providers, _chain(number, matrix.tobytes()))

    def spent(rows: int) -> float:
        given = np.ones((rows, _WIDTH), kind)
        return _best(lambda: session.run(None, {"rows": given}))

    found, rows = [0.0], _ROWS
    # with few rows a fast machine still waits for the matrices: more of them, as long as that is faster by a tenth
    while rows <= _MOST_ROWS and (len(found) == 1 or found[-1] > 1.1 * found[-2]):
        found.append(_MATRICES * 2 * rows * _WIDTH**2 / spent(rows))
        rows *= 2
    return Balance(flops=max(found), bytes=_MATRICES * matrix.nbytes / spent(1))


def _best(run: Callable[[], list[Array]]) -> float:
    """Seconds of the quickest run; the first one warms up."""
    run()
    spent = []
    for _ in range(_TRIES):
        started = perf_counter()
        run()
        spent.append(perf_counter() - started)
    return min(spent)


def _chain(number: int, matrix: bytes) -> bytes:
    """An ONNX model of `rows` times one square matrix after the other; fields are numbered as in onnx.proto."""
    parts = []
    for place in range(_MATRICES):
        made = "result" if place == _MATRICES - 1 else f"rows.{place}"
        taken = "rows" if place == 0 else f"rows.{place - 1}"
        parts.append(_field(1, _field(1, taken) + _field(1, f"matrix.{place}") + _field(2, made) + _field(4, "MatMul")))
    parts.append(_field(2, "balance"))
    for place in range(_MATRICES):
        sizes = _field(1, _WIDTH) * 2
        parts.append(_field(5, sizes + _field(2, number) + _field(8, f"matrix.{place}") + _field(9, matrix)))
    shape = _field(1, _field(2, "count")) + _field(1, _field(1, _WIDTH))
    for end, name in ((11, "rows"), (12, "result")):
        parts.append(_field(end, _field(1, name) + _field(2, _field(1, _field(1, number) + _field(2, shape)))))
    return _field(1, 8) + _field(7, b"".join(parts)) + _field(8, _field(2, 18))


def _field(number: int, value: int | str | bytes) -> bytes:
    """A field of a protocol buffer: a number, or bytes behind their length."""
    if isinstance(value, int):
        return _varint(number << 3) + _varint(value)
    data = value.encode() if isinstance(value, str) else value
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])
