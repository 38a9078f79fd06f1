"""What the figures of a profile were measured on."""

import os
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

__all__ = ["Machine", "cpu_name", "load_now", "this_machine"]


def load_now() -> float:
    """Processes that wanted to run, on average over the last minute."""
    return os.getloadavg()[0]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """`load`: runnable processes, mean over the minute before measuring; `threads` None is ONNX Runtime's choice;
    `fell_back`: a GPU driver is there, and ONNX Runtime could not use it."""

    cpu: str
    cores: int
    load: float
    threads: int | None
    provider: str
    fell_back: bool
    onnxruntime: str
    dtype: str

    @property
    def busy(self) -> bool:
        """Whether other work took a good part of the cores."""
        return self.load > 0.5 * self.cores

    def record(self) -> dict[str, Any]:
        """These facts as JSON."""
        return asdict(self)


def this_machine(provider: str, fell_back: bool, *, threads: int | None, dtype: str, load: float) -> Machine:
    """The machine this runs on, with what only the caller knows: where graphs ran, and the load beforehand."""
    return Machine(
        cpu=cpu_name(),
        cores=os.cpu_count() or 1,
        load=load,
        threads=threads,
        provider=provider.removesuffix("ExecutionProvider"),
        fell_back=fell_back,
        onnxruntime=ort.__version__,
        dtype=dtype,
    )


def cpu_name() -> str:
    """What the processor calls itself."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(("model name", "Model\t", "Hardware")):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
