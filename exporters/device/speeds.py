"""What each board could do at most: dense peaks and memory bandwidth of every module, as NVIDIA's figures are quoted.

Orin Nano's data sheet gives 40 and 20 sparse INT8 TOPS for 32 and 16 tensor cores at 625 MHz: 2048 operations per core
and clock. That rate, the published numbers of tensor cores and the highest clocks give the figures of all Orin modules
below within 2 %. AGX Orin 64, Orin Nano 8 and Thor 128 also agree with pages that quote them. No sheet of AGX Orin 32,
Orin NX and Thor 64 was at hand: look before you rely on one of them.

Orin        a quarter of the sparse INT8 rate of the GPU (170, 108, 77, 77, 67 and 34 TOPS; of Orin NX and Orin Nano at
            the clocks of MAXN SUPER), for tensor cores do half as many dense products as sparse ones, and half as many
            FP16 ones as INT8.
Thor        an eighth of the sparse FP4 rate (2070 and 1200 TFLOPS).

None of these is measured here, and no program reaches them; a time computed from them is a lower bound. TensorRT
computes float32 as TF32 unless told, which tensor cores do at half of the rate of FP16.
"""

from dataclasses import dataclass

from tokcarve.exporters.device.boards import Board

__all__ = ["MODULES", "Module", "modules_of"]


@dataclass(frozen=True, kw_only=True)
class Module:
    """One size of a board: GiB of memory, dense FP16 TFLOPS of its tensor cores, GB/s of its memory."""

    board: str
    memory: int
    tflops: float
    gbps: float

    @property
    def name(self) -> str:
        """Its board with the memory, as "orin 64 GiB"."""
        return f"{self.board} {self.memory} GiB"

    def peak(self, computes: str) -> float:
        """FLOPs per second in a type that graphs compute in."""
        return self.tflops * 1e12 * (0.5 if computes == "float32" else 1.0)

    @property
    def bandwidth(self) -> float:
        """Bytes per second."""
        return self.gbps * 1e9


MODULES = (
    Module(board="orin", memory=64, tflops=42.5, gbps=204.8),
    Module(board="orin", memory=32, tflops=27.0, gbps=204.8),
    Module(board="orin-nx", memory=16, tflops=19.25, gbps=102.4),
    Module(board="orin-nx", memory=8, tflops=19.25, gbps=102.4),
    Module(board="orin-nano", memory=8, tflops=16.75, gbps=102.0),
    Module(board="orin-nano", memory=4, tflops=8.5, gbps=51.0),
    Module(board="thor", memory=128, tflops=258.75, gbps=273.0),
    Module(board="thor", memory=64, tflops=150.0, gbps=273.0),
)
"""Every module whose figures are published; RTX cards differ too much to have one."""


def modules_of(board: Board | None) -> tuple[Module, ...]:
    """The modules of a board, the one with the most memory first; of every board where none is named."""
    return tuple(one for one in MODULES if board is None or one.board == board.name)
