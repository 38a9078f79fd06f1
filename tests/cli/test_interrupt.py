"""Ctrl-C in the middle of the work: exit code 130, nothing half-written."""

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import models
import pytest


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def running(tmp_path: Path, here: Path) -> Iterator["subprocess.Popen[str]"]:
    checkpoint = models.write(models.build(), tmp_path / "model")
    command = [sys.executable, "-m", "tokcarve.cli", "compress", str(checkpoint), "--method", "flowcut", "--tokens"]
    command += ["16", "--samples", "scenes", "--count", "5000", "-o", "out"]
    # a test run in the background ignores Ctrl-C, and what it starts would inherit that
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    yield process
    if process.poll() is None:
        process.kill()
        process.wait()


def test_ctrl_c_leaves_nothing(running: "subprocess.Popen[str]", here: Path) -> None:
    deadline = time.monotonic() + 120
    maps = Path(f"/proc/{running.pid}/maps")
    # once torch is loaded the work itself is under way, for minutes
    while "libtorch_cpu" not in maps.read_text() and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(2)
    os.kill(running.pid, signal.SIGINT)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == 130, errors
    last = errors.strip().splitlines()[-1]
    left = {path.name for path in here.iterdir()}
    if left:
        assert left == {".out.calibration.jsonl"}
        assert last.endswith("half-written is left; what was calibrated so far is kept, go on with --resume")
    else:
        assert last.endswith("interrupted; nothing half-written is left")


def test_ctrl_c_in_text_that_python_executes_exits_alike(tmp_path: Path) -> None:
    """Python, run as `python -m`, remembers such an interruption and would end by the signal."""
    program = tmp_path / "program.py"
    program.write_text(
        "import typer\n"
        "from tokcarve.cli import main\n"
        "from tokcarve.cli.failures import guarded\n"
        "def verb() -> None:\n"
        "    exec('raise KeyboardInterrupt')\n"
        "main.app = typer.Typer(add_completion=False)\n"
        "main.app.command()(guarded(verb))\n"
        "import sys; sys.argv = ['tokcarve']\n"
        "main.main()\n"
    )
    command = [sys.executable, "-m", "program"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 130, done
    assert done.stderr.strip() == "interrupted; nothing half-written is left"
