"""The machine that this runs on, as `tokcarve doctor` tells of it: memory, disk, GPUs, Jetson, and whether a hub is
near."""

import os
import platform
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

__all__ = ["Gpu", "Host", "gpus_of", "hub_state", "jetson_at", "this_host"]

_ASK = ("--query-gpu=name,driver_version,memory.total,memory.free", "--format=csv,noheader,nounits")
_GIB, _SECONDS = 2.0**30, 3
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_RELEASE = re.compile(r"# R(?P<major>\d+) \(release\), REVISION: (?P<rest>[\d.]+)")
# the JetPack of each L4T, by its first number
_JETPACKS = {"35": "5", "36": "6", "38": "7.0 or 7.1", "39": "7.2"}


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """What nvidia-smi says of one GPU; memory in GiB, None where it does not say."""

    name: str
    driver: str
    memory: float | None
    free: float | None

    def __str__(self) -> str:
        of = "" if self.memory is None else f" of {self.memory:.1f} GiB"
        return f"{self.name}, driver {self.driver}" + (f", {self.free:.1f}{of} free" if self.free is not None else "")


@dataclass(frozen=True, kw_only=True)
class Host:
    """The machine; memory and disk (of the working directory) in GiB. jetson: its L4T and JetPack, None elsewhere."""

    system: str
    python: str
    cores: int
    memory: float
    memory_free: float
    disk_free: float
    gpus: tuple[Gpu, ...]
    jetson: str | None

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"gpus": [asdict(gpu) for gpu in self.gpus]}


def this_host() -> Host:
    """The machine that this process runs on."""
    memory = psutil.virtual_memory()
    return Host(
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        python=platform.python_version(),
        cores=os.cpu_count() or 1,
        memory=memory.total / _GIB,
        memory_free=memory.available / _GIB,
        disk_free=shutil.disk_usage(Path.cwd()).free / _GIB,
        gpus=gpus_of(_nvidia_smi()),
        jetson=jetson_at(Path("/")),
    )


def gpus_of(text: str) -> tuple[Gpu, ...]:
    """The GPUs in what nvidia-smi prints: name, driver, MiB in all and free, with commas between them."""
    found = []
    for line in text.splitlines():
        name, driver, memory, free = ([part.strip() for part in line.split(",")] + [""] * 4)[:4]
        if driver:
            found.append(Gpu(name=name, driver=driver, memory=_gib(memory), free=_gib(free)))
    return tuple(found)


def jetson_at(root: Path) -> str | None:
    """L4T and JetPack of the Jetson whose files lie under `root`; None where it is none."""
    try:
        text = (root / "etc" / "nv_tegra_release").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    match = _RELEASE.search(text)
    if match is None:
        return "a Jetson whose release is not known"
    jetpack = _JETPACKS.get(match["major"])
    of = f" (JetPack {jetpack})" if jetpack is not None else ""
    return f"L4T {match['major']}.{match['rest']}{of}"


def hub_state() -> tuple[bool, str]:
    """Whether models can be fetched from a hub, and what was found."""
    asked = next((name for name in _OFFLINE if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")), None)
    if asked is not None:
        return False, f"offline, because {asked} is set; models come from the local cache or a directory"
    try:
        from huggingface_hub.constants import ENDPOINT
    except ImportError:
        return False, "no client; pip install 'tokcarve[compress]'"
    try:
        urllib.request.urlopen(urllib.request.Request(ENDPOINT, method="HEAD"), timeout=_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # it answered
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "reason", error))
        return False, f"not reachable ({reason}); models come from the local cache or a directory"
    return True, "reachable"


def _nvidia_smi() -> str:
    try:
        done = subprocess.run(("nvidia-smi", *_ASK), capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _gib(mebibytes: str) -> float | None:
    try:
        return float(mebibytes) / 1024
    except ValueError:
        return None
