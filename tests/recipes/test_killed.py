"""A process killed while it writes an artifact leaves the old one or none, and the next one cleans up."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from artifacts import write
from checkpoints import write_checkpoint

from tokcarve.passes.checkpoint import Checkpoint, open_directory
from tokcarve.recipes.artifact import read_artifact


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    return open_directory(write_checkpoint(tmp_path / "base"))


def _names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


@contextlib.contextmanager
def _killed_at(step: str, number: int, base: Path, out: Path) -> Iterator[int]:
    """A process that writes `out` and kills itself, without any clean-up, at the n-th call of a system function."""
    script = f"""
        import os, shutil, signal, sys
        from pathlib import Path
        from artifacts import write
        from tokcarve.passes.checkpoint import open_directory
        base = open_directory(Path({str(base)!r}))
        home = shutil if {step!r} in ("copyfile", "rmtree") else os
        real, calls = getattr(home, {step!r}), []
        def deadly(*args, **kwargs):
            calls.append(1)
            if len(calls) == {number}:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        setattr(home, {step!r}, deadly)
        write(Path({str(out)!r}), base, force=True, seed=5)
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    yield done.returncode


@pytest.mark.parametrize(
    ("step", "number"), [("mkdir", 1), ("copyfile", 2), ("fsync", 1), ("rename", 1), ("rename", 2), ("rmtree", 1)]
)
def test_kill_at_any_moment_leaves_the_old_one_or_none(
    tmp_path: Path, base: Checkpoint, step: str, number: int
) -> None:
    out = tmp_path / "out"
    write(out, base)
    with _killed_at(step, number, base.path, out) as code:
        assert code == -signal.SIGKILL
    if out.exists():
        # a kill during the last sweep comes after the new one is in its place
        assert read_artifact(out).manifest.seed == (5 if step == "rmtree" else 0)
    else:
        assert (step, number) == ("rename", 2)
    write(out, base, force=True, seed=7)
    assert read_artifact(out).manifest.seed == 7
    assert _names(tmp_path) == {"base", "out"}


def test_what_a_running_process_writes_is_not_swept_away(tmp_path: Path, base: Checkpoint) -> None:
    foreign = tmp_path / f".out.tokcarve-{os.getppid()}-01234567.part"
    foreign.mkdir()
    write(tmp_path / "out", base)
    assert foreign.is_dir()
