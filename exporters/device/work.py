"""What a run of each stage computes and must at least read: FLOPs, and bytes of weights and caches.

Activations are left out: whether they leave a processor's caches depends on the machine. So FLOPs per byte are an upper
bound, and a stage that is bound by memory by this count is so in fact.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tokcarve.exporters.device.face import ExportRecord, Side
from tokcarve.passes.flops import Flops, kv_bytes, weight_parameters

__all__ = ["ELEMENT_BYTES", "Work", "works"]

ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_WEIGHT_BYTES = {"int8": 1.0, "int4": 0.5}
"""Of the language model's matrices where these have fewer bits than the rest."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """One run of a stage: FLOPs of the whole batch, and bytes of weights and of caches."""

    flops: int
    weight_bytes: int
    cache_bytes: int

    @property
    def bytes(self) -> int:
        """All that must be read or written."""
        return self.weight_bytes + self.cache_bytes

    @property
    def flops_per_byte(self) -> float:
        """Its arithmetic intensity."""
        return self.flops / self.bytes


def works(record: ExportRecord, side: Side, flops: Flops) -> Mapping[str, Work]:
    """The work of `encoder`, `prefill` and `decode` of one side; `flops` are those of one image."""
    counts, each, batch = weight_parameters(record.geometry), ELEMENT_BYTES[record.dtype], record.batch
    language = round(counts["language"] * _WEIGHT_BYTES.get(record.precision, each)) + counts["head"] * each
    stored, held = (batch * kv_bytes(record.geometry.text, rows, each) for rows in (side.rows, side.capacities))
    return {
        "encoder": Work(
            flops=batch * flops.vision, weight_bytes=(counts["encoder"] + counts["connector"]) * each, cache_bytes=0
        ),
        "prefill": Work(flops=batch * flops.prefill, weight_bytes=language, cache_bytes=stored),
        "decode": Work(flops=batch * flops.decode, weight_bytes=language, cache_bytes=held),
    }
