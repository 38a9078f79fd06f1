"""What the device says of its clocks, power and memory while it is measured.

Asked, in this order, and the first that is there tells about the GPU: `nvidia-smi` (NVML), `tegrastats` (Jetson), the
kernel's files under /sys (devfreq, ina3221, and RAPL for the processor's own power). Load and frequency of the CPU are
always told. Names and units of what is read:

    gpu_mhz, gpu_memory_mhz, gpu_percent (busy), gpu_c (degrees Celsius), power_w (of the board or the GPU, or of the
    processor where there is no other), device_mib (memory of the GPU in use), cpu_mhz, cpu_percent (of all cores)

What may not be read is a sentence in `unread`, never a failure.
"""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from time import monotonic
from typing import Any

import psutil

__all__ = ["Watch", "device_mib"]

_SMI = {
    "gpu_mhz": "clocks.sm",
    "gpu_memory_mhz": "clocks.mem",
    "gpu_percent": "utilization.gpu",
    "gpu_c": "temperature.gpu",
    "power_w": "power.draw",
    "device_mib": "memory.used",
}
_TEGRA = {
    "gpu_mhz": (r"GR3D_FREQ \d+%@\[?(\d+)", 1.0),
    "gpu_percent": (r"GR3D_FREQ (\d+)%", 1.0),
    "gpu_c": (r"(?i)\bgpu@(-?[\d.]+)C", 1.0),
    "power_w": (r"(?:VDD_IN|POM_5V_IN) (\d+)", 1e-3),
}
_SECONDS = 1.0
"""Between two readings: asking takes time of its own."""
_PATIENCE = 5.0


class Watch:
    """Gathers readings; `look` between rounds, never within one."""

    def __init__(self, sysfs: Path = Path("/sys")) -> None:
        self.sysfs = sysfs
        self.unread: list[str] = []
        self._values: dict[str, list[float]] = {}
        self._last = 0.0
        self._energy: tuple[float, float] | None = None
        self.source, self._gpu = self._choose()
        psutil.cpu_percent()  # the first call tells nothing, the next ones what happened since

    def _choose(self) -> tuple[str, Callable[[], Mapping[str, float]]]:
        for program, read in (("nvidia-smi", self._smi), ("tegrastats", self._tegrastats)):
            if shutil.which(program) is not None and read():
                return program, read
        return "sysfs", self._kernel

    def look(self) -> None:
        """One reading, unless the last one was just taken."""
        if monotonic() - self._last < _SECONDS:
            return
        for name, value in {**self._cpu(), **self._gpu()}.items():
            self._values.setdefault(name, []).append(value)
        self._last = monotonic()

    def record(self) -> dict[str, Any]:
        """Least, median and most of everything that was read, and what was not."""
        summary = {
            name: {"min": min(values), "median": sorted(values)[len(values) // 2], "max": max(values)}
            for name, values in self._values.items()
        }
        return {"source": self.source, **summary, "unread": list(self.unread)}

    def _cpu(self) -> dict[str, float]:
        found = {"cpu_percent": psutil.cpu_percent()}
        try:
            frequency = psutil.cpu_freq()
        except (OSError, NotImplementedError) as error:
            self._say("frequency of the CPU", error)
        else:
            if frequency is not None:
                found["cpu_mhz"] = float(frequency.current)
        return found

    def _smi(self) -> dict[str, float]:
        """The first GPU, as NVML has it."""
        query = ["nvidia-smi", f"--query-gpu={','.join(_SMI.values())}", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(query, capture_output=True, text=True, check=False, timeout=_PATIENCE)
        except (OSError, subprocess.TimeoutExpired) as error:
            self._say("nvidia-smi", error)
            return {}
        if done.returncode != 0:
            self._say("nvidia-smi", (done.stdout + done.stderr).strip().splitlines()[:1] or "it failed")
            return {}
        found = {}
        for name, text in zip(_SMI, done.stdout.splitlines()[0].split(","), strict=False):
            try:
                found[name] = float(text)
            except ValueError:
                self._say(_SMI[name], text.strip())
        return found

    def _tegrastats(self) -> dict[str, float]:
        """One line of tegrastats, which would go on for ever."""
        try:
            with subprocess.Popen(
                ["tegrastats", "--interval", "100"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            ) as process:
                assert process.stdout is not None
                line = process.stdout.readline()
                process.terminate()
        except OSError as error:
            self._say("tegrastats", error)
            return {}
        hits = {name: (re.search(pattern, line), scale) for name, (pattern, scale) in _TEGRA.items()}
        found = {name: float(hit[1]) * scale for name, (hit, scale) in hits.items() if hit is not None}
        if not found:
            self._say("tegrastats", line.strip() or "it said nothing")
        return found

    def _kernel(self) -> dict[str, float]:
        """Clock of the GPU from devfreq, power of the board from its ina3221, else of the processor from RAPL."""
        found: dict[str, float] = {}
        for folder in sorted(self.sysfs.glob("class/devfreq/*")):
            if re.search(r"gpu|gv11b|ga10b|gb10b", folder.name):
                found.update(("gpu_mhz", hertz / 1e6) for hertz in self._numbers(folder / "cur_freq"))
        for label in sorted(self.sysfs.glob("class/hwmon/hwmon*/in*_label")):
            if self._text(label) == "VDD_IN":
                place = label.name.removeprefix("in").removesuffix("_label")
                volts, amperes = (label.with_name(f"{kind}{place}_input") for kind in ("in", "curr"))
                both = zip(self._numbers(volts), self._numbers(amperes), strict=False)
                found.update(("power_w", millivolts * milliamperes / 1e6) for millivolts, milliamperes in both)
        return found if "power_w" in found else found | self._rapl()

    def _rapl(self) -> dict[str, float]:
        """Mean power of the processor since the last reading."""
        for energy in self._numbers(self.sysfs / "class/powercap/intel-rapl:0/energy_uj"):
            before, self._energy = self._energy, (energy, monotonic())
            if before is not None and energy >= before[0]:
                return {"power_w": (energy - before[0]) / 1e6 / (self._energy[1] - before[1])}
        return {}

    def _numbers(self, path: Path) -> Iterator[float]:
        text = self._text(path)
        if text:
            yield float(text)

    def _text(self, path: Path) -> str:
        """What a file says; nothing where it is missing, and where it may not be read, which is noted."""
        try:
            return path.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return ""
        except OSError as error:
            self._say(str(path), error)
            return ""

    def _say(self, what: str, why: object) -> None:
        reason = why.strerror or type(why).__name__ if isinstance(why, OSError) else " ".join(map(str, _list(why)))
        said = f"{what} could not be read: {reason}"
        if said not in self.unread:
            self.unread.append(said)


def _list(why: object) -> list[Any]:
    return why if isinstance(why, list) else [why]


def device_mib() -> float | None:
    """MiB of the GPU's own memory that are in use; None where there is no such GPU, or its memory is the board's."""
    watch = Watch()
    return watch._smi().get("device_mib") if watch.source == "nvidia-smi" else None
