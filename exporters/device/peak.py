"""The most memory that this process has had so far."""

import sys
from pathlib import Path

__all__ = ["peak_mib"]


def peak_mib() -> float:
    """MiB of this process's own peak; getrusage would count what its parent held when it started this one."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    import resource  # no Windows has it

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
