"""The least time that a model can take on a module, by its peaks alone: a roofline, layer by layer.

A layer takes at least as long as its FLOPs at the peak of the tensor cores, and at least as long as reading its weights
and keys and values once at the bandwidth of the memory; parts follow one another. Left out is all that can only add
to it: activations, launches, the selection, norms, and that no kernel reaches a peak. Times are lower bounds, and the
ratio of two is what a program that reaches the same share of both would gain. Nothing here is measured.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tokcarve.exporters.device.speeds import Module
from tokcarve.exporters.engines import weight_bytes
from tokcarve.exporters.precision import PRECISIONS
from tokcarve.passes.flops import Rows, count_flops, decode_layer_flops, kv_bytes, layer_flops
from tokcarve.passes.geometry import Geometry

__all__ = ["ANSWERS", "Times", "least_times"]

ANSWERS = (16, 64, 256)
"""New tokens of the answers that end-to-end times are told for."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """Least milliseconds of one image and prompt; `decode` is one further token."""

    encoder: float
    prefill: float
    decode: float

    @property
    def first_token(self) -> float:
        """Encoder and prefill."""
        return self.encoder + self.prefill

    def answer(self, new: int) -> float:
        """A whole answer of `new` tokens."""
        return self.first_token + (new - 1) * self.decode

    def record(self) -> dict[str, Any]:
        """As JSON, in milliseconds."""
        return {
            "encoder": self.encoder,
            "prefill": self.prefill,
            "decode": self.decode,
            "first_token": self.first_token,
            "end_to_end": {str(new): self.answer(new) for new in ANSWERS},
        }


def least_times(
    geometry: Geometry, rows: Rows, cached: Sequence[int], module: Module, precision: str, *, of_peak: float | int = 1.0
) -> Times:
    """The least times on `module` in one of `PRECISIONS` of a model whose parts see `rows`, and whose decode steps
    attend to `cached` rows in each layer; `of_peak` is the share of both peaks that is taken to be reached."""
    computes = PRECISIONS[precision].computes
    element = 4 if computes == "float32" else 2
    sizes, text = weight_bytes(geometry, precision), geometry.text
    whole = count_flops(geometry, rows)
    tower, language = layer_flops(geometry, rows)

    def least(parts: Iterable[tuple[int, float | int]]) -> float:
        peak, bandwidth = of_peak * module.peak(computes), of_peak * module.bandwidth
        return 1e3 * sum(max(flops / peak, read / bandwidth) for flops, read in parts)

    head = (2 * text.hidden * text.vocab, sizes["head"])
    layer, block = sizes["language"] / text.layers, sizes["encoder"] / geometry.vision.layers_used
    return Times(
        encoder=least(
            [
                *((flops, block) for flops in tower),
                (whole.encoder - sum(tower), 0),
                (whole.connector, sizes["connector"]),
            ]
        ),
        prefill=least([*((flops, layer) for flops in language), head]),
        decode=least(
            [
                *((decode_layer_flops(text, one), layer + kv_bytes(text, (one,), element)) for one in cached),
                head,
            ]
        ),
    )
