"""What the engines of a model take, before there are any: bytes of weights, memory to build them, and to run all four.

Estimates from shapes alone, with norms and biases left out; nothing here is measured.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokcarve.exporters.precision import PRECISIONS, matrix_bytes
from tokcarve.passes.flops import kv_bytes, text_matrices, weight_parameters
from tokcarve.passes.geometry import Geometry, TextGeometry

__all__ = ["GIB", "Room", "build_peak", "engine_bytes", "room", "weight_bytes"]

GIB = 2.0**30


@dataclass(frozen=True, kw_only=True)
class Room:
    """GiB of memory: `build` of each engine at its peak, by graph, and `run` of all of them with the caches."""

    build: Mapping[str, float]
    run: float

    @property
    def largest(self) -> str:
        """The graph whose engine takes the most to build."""
        return max(self.build, key=lambda name: self.build[name])

    @property
    def need(self) -> float:
        """What a board that builds and runs them has to have."""
        return max(self.run, *self.build.values())


def weight_bytes(geometry: Geometry, precision: str) -> dict[str, float]:
    """Bytes by part of a model in one of `PRECISIONS`; its int8 and int4 are the matrices of the language layers alone,
    scales included, and all else is in what the graphs compute in."""
    chosen = PRECISIONS[precision]
    each = {"float32": 4.0}.get(chosen.computes, 2.0)
    sizes = {part: each * count for part, count in weight_parameters(geometry).items()}
    if chosen.bits:
        layer = sum(sum(matrix_bytes(shape, chosen)) for shape in text_matrices(geometry.text))
        sizes["language"] = float(geometry.text.layers * layer)
    return sizes


def engine_bytes(sizes: Mapping[str, float | int]) -> dict[str, float | int]:
    """Bytes of weights of every engine, from those of the parts of a model: each engine has its own copy."""
    return {
        "vision": sizes["encoder"] + sizes["connector"],
        "embedding": sizes["embedding"],
        "prefill": sizes["language"] + sizes["head"],
        "decode": sizes["language"] + sizes["head"],
    }


def build_peak(weight_bytes: float | int) -> float:
    """GiB of memory that building an engine takes at its peak, estimated and not measured.

    A builder holds the weights about four times over: in the file, parsed, while it chooses kernels, and in the engine.
    """
    return 4 * weight_bytes / GIB + 0.5


def room(
    sizes: Mapping[str, float | int], text: TextGeometry, rows: Sequence[int], *, batch: int, element: int
) -> Room:
    """What the engines of a model with parts of these `sizes` take, whose layers cache `rows` of each of `batch`
    prompts, `element` bytes per number."""
    engines = engine_bytes(sizes)
    caches = batch * kv_bytes(text, rows, element)
    return Room(
        build={name: build_peak(size) for name, size in engines.items()}, run=(sum(engines.values()) + caches) / GIB
    )
