"""Clocks and power: what stands in for `nvidia-smi`, `tegrastats` and /sys, and what may not be read."""

import os
from pathlib import Path

import psutil
import pytest

from tokcarve.exporters.device.clocks import Watch, device_mib

TEGRA = (
    "11-29-2026 14:00:00 RAM 2448/7620MB (lfb 4x4MB) CPU [12%@1190,3%@1190] GR3D_FREQ 45%@[306] cpu@48.2C gpu@46.5C "
    "VDD_IN 4912mW/4870mW VDD_SOC 1500mW/1490mW"
)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory that is all of PATH, but for the shell."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    return folder


def install(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


def test_nvml_is_asked_for_the_first_gpu(programs: Path, tmp_path: Path) -> None:
    install(
        programs, "nvidia-smi", 'echo "$@" >> "$0.log"; echo "1980, 2619, 87, 54, 312.5, 1024"; echo "1, 1, 1, 1, 1, 1"'
    )
    watch = Watch(tmp_path)
    watch.look()
    watch.look()  # within the second: not asked again
    record = watch.record()
    assert record["source"] == "nvidia-smi" and record["unread"] == []
    assert record["gpu_mhz"] == {"min": 1980, "median": 1980, "max": 1980} and record["power_w"]["max"] == 312.5
    assert (
        record["gpu_memory_mhz"]["min"] == 2619 and record["gpu_percent"]["min"] == 87 and record["gpu_c"]["min"] == 54
    )
    assert 0 <= record["cpu_percent"]["min"] <= 100
    asked = (programs / "nvidia-smi.log").read_text().splitlines()
    assert len(asked) == 2 and "power.draw" in asked[0]
    assert device_mib() == 1024


def test_what_nvml_may_not_tell_is_said(programs: Path, tmp_path: Path) -> None:
    install(programs, "nvidia-smi", 'echo "1980, 2619, 87, 54, [Insufficient Permissions], 1024"')
    watch = Watch(tmp_path)
    watch.look()
    record = watch.record()
    assert record["gpu_mhz"]["max"] == 1980 and "power_w" not in record
    assert record["unread"] == ["power.draw could not be read: [Insufficient Permissions]"]


def test_a_driver_that_fails_is_no_gpu(programs: Path, tmp_path: Path) -> None:
    install(programs, "nvidia-smi", 'echo "Failed to initialize NVML: Driver/library version mismatch"; exit 18')
    watch = Watch(tmp_path)
    watch.look()
    record = watch.record()
    assert record["source"] == "sysfs" and "gpu_mhz" not in record
    assert record["unread"] == [
        "nvidia-smi could not be read: Failed to initialize NVML: Driver/library version mismatch"
    ]
    assert device_mib() is None


def test_tegrastats_is_read_for_a_line_and_ended(programs: Path, tmp_path: Path) -> None:
    install(programs, "tegrastats", f'while echo "{TEGRA}"; do read -t 1 nothing < /dev/zero; done')
    watch = Watch(tmp_path)
    watch.look()
    record = watch.record()
    assert record["source"] == "tegrastats" and record["unread"] == []
    medians = {name: record[name]["median"] for name in ("gpu_mhz", "gpu_percent", "gpu_c", "power_w")}
    assert medians == {"gpu_mhz": 306, "gpu_percent": 45, "gpu_c": 46.5, "power_w": 4.912}
    assert device_mib() is None  # a Jetson's memory is the board's


def test_tegrastats_without_permission_is_said(programs: Path, tmp_path: Path) -> None:
    install(programs, "tegrastats", "echo 'tegrastats: permission denied' >&2; exit 1")
    watch = Watch(tmp_path)
    assert watch.source == "sysfs"
    assert watch.unread == ["tegrastats could not be read: tegrastats: permission denied"]


def test_the_kernel_tells_of_a_jetson(programs: Path, tmp_path: Path) -> None:
    files = {
        "class/devfreq/17000000.gpu/cur_freq": "918000000",
        "class/devfreq/15480000.nvdec/cur_freq": "1",
        "class/hwmon/hwmon1/in1_label": "VDD_IN", "class/hwmon/hwmon1/in1_input": "5000",
        "class/hwmon/hwmon1/curr1_input": "1200", "class/hwmon/hwmon1/in2_label": "VDD_SOC",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    watch = Watch(tmp_path)
    watch.look()
    record = watch.record()
    assert record["gpu_mhz"]["median"] == 918 and record["power_w"]["median"] == pytest.approx(6.0)


def test_files_that_may_not_be_read_are_named_and_nothing_stops(
    programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    energy = tmp_path / "class/powercap/intel-rapl:0/energy_uj"
    energy.parent.mkdir(parents=True)
    energy.write_text("1000000")
    if os.access(energy, os.R_OK) and os.geteuid() == 0:  # whom no mode of a file stops
        real = Path.read_text

        def refused(path: Path, *arguments: object, **options: object) -> str:
            if path == energy:
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(Path, "read_text", refused)
    energy.chmod(0)
    watch = Watch(tmp_path)
    watch.look()
    assert watch.record()["unread"] == [f"{energy} could not be read: Permission denied"]


def test_a_processor_without_a_frequency(programs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_freq", lambda: None)
    watch = Watch(tmp_path)
    watch.look()
    assert set(watch.record()) == {"source", "cpu_percent", "unread"}
