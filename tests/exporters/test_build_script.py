"""The script that builds engines on a device, run with a stand-in for trtexec."""

import subprocess
from pathlib import Path

import pytest

from tokcarve.exporters.build_script import SCRIPT, build_script
from tokcarve.exporters.device.boards import find_target

TRTEXEC = """#!/bin/sh
if [ "$1" = --help ]; then
  echo "&&&& RUNNING TensorRT.trtexec [TensorRT v{number}] [b36] # trtexec --help"
  echo "  --stronglyTyped   Create a strongly typed network"
  exit 0
fi
echo "$@" >> {calls}
for word in "$@"; do
  case "$word" in --saveEngine=*) echo engine > "${{word#--saveEngine=}}" ;; esac
done
{end}
"""


def install(place: Path, number: str = "100300", end: str = "") -> Path:
    """A stand-in for trtexec in `place`; the file with its calls."""
    tool, calls = place / "trtexec", place / "calls"
    tool.write_text(TRTEXEC.format(number=number, calls=calls, end=end))
    tool.chmod(0o755)
    return calls


def script(place: Path, target: str | None = None) -> Path:
    graphs = [Path("vision.onnx"), Path("prefill.onnx")]
    path = place / SCRIPT
    path.write_text(build_script(graphs, {"prefill.onnx": 2**30}, find_target(target) if target else None))
    return path


def run(path: Path, *arguments: str, tools: bool = True) -> subprocess.CompletedProcess[str]:
    env = {"PATH": f"{path.parent}:/usr/bin:/bin" if tools else "/usr/bin:/bin"}
    return subprocess.run(["bash", str(path), *arguments], env=env, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("target", [None, "orin", "orin@10.3", "thor@jp7.1", "thor@11"])
def test_it_is_bash(target: str | None, tmp_path: Path) -> None:
    subprocess.run(["bash", "-n", str(script(tmp_path, target))], check=True)


def test_it_builds_every_graph_and_says_for_what(tmp_path: Path) -> None:
    calls, path = install(tmp_path), script(tmp_path, "orin@10.3")
    done = run(path)
    assert done.returncode == 0, done.stderr
    lines = calls.read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["--onnx=../onnx/vision.onnx", "--onnx=../onnx/prefill.onnx"]
    assert all("--stronglyTyped" in line and "--timingCacheFile=engines/timing.cache" in line for line in lines)
    assert sorted(one.name for one in (tmp_path / "engines").glob("*.engine*")) == ["prefill.engine", "vision.engine"]
    assert "meant for TensorRT 10.3 (JetPack 6)" in done.stdout
    assert "this is TensorRT 10.3, which is meant" in done.stdout
    assert "about 4608 MiB" in done.stdout
    head = path.read_text().split("set -euo")[0]
    assert "Jetson AGX Orin" in head and "10.3 (JetPack 6)" in head and "10.13" not in head and "4.5 GiB" in head


def test_engines_that_are_there_are_left_unless_forced(tmp_path: Path) -> None:
    calls, path = install(tmp_path), script(tmp_path)
    assert run(path).returncode == 0
    again = run(path)
    assert "vision.engine is there already" in again.stdout
    assert len(calls.read_text().splitlines()) == 2
    assert run(path, "--force").returncode == 0
    assert len(calls.read_text().splitlines()) == 4
    assert run(path, "--fast").returncode == 2


def test_another_tensorrt_is_warned_of(tmp_path: Path) -> None:
    install(tmp_path, "101602")
    done = run(script(tmp_path, "orin@10.3"))
    assert done.returncode == 0
    assert "warning: this is TensorRT 10.16" in done.stderr
    assert "warning: this is" not in run(script(tmp_path, "orin")).stderr


@pytest.mark.parametrize(("number", "typed"), [("101303", True), ("110401", False), ("x", True)])
def test_strong_typing_is_a_flag_before_11(number: str, typed: bool, tmp_path: Path) -> None:
    calls = install(tmp_path, number)
    done = run(script(tmp_path, "thor"))
    assert done.returncode == 0, done.stderr
    assert ("--stronglyTyped" in calls.read_text()) == typed
    assert ("does not say its version" in done.stdout) == (number == "x")


def test_without_trtexec_it_says_where_it_comes_from(tmp_path: Path) -> None:
    done = run(script(tmp_path), tools=False)
    assert done.returncode == 1
    assert "libnvinfer-bin" in done.stderr
    assert not (tmp_path / "engines").exists()


def test_an_engine_that_fails_is_not_left(tmp_path: Path) -> None:
    install(tmp_path, end="exit 3")
    done = run(script(tmp_path))
    assert done.returncode == 1
    assert "did not build engines/vision.engine" in done.stderr
    assert list((tmp_path / "engines").iterdir()) == []


def test_boards_of_a_kind_that_are_too_small_are_named(tmp_path: Path) -> None:
    text = build_script([Path("prefill.onnx")], {"prefill.onnx": 10 * 2**30}, find_target("orin"))
    assert "40.5 GiB at the peak" in text
    assert "too much for a Jetson AGX Orin of 32 GiB" in text
