"""TensorRT: check a graph without a GPU, and build engines: for RTX on any CPU, others where there is a GPU."""

import importlib.metadata
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokcarve.exporters.device.boards import Target
from tokcarve.passes.errors import ExportError

__all__ = ["TrtReport", "build_engine", "check_with_rtx", "gpu_for"]

# warnings after which an engine computes something else than the graph says
_FATAL = re.compile(r"unused input|is unused|clamp|truncat|overflow|will be ignored|is ignored|\bcast", re.IGNORECASE)
_LIMIT = 3600


@dataclass(frozen=True, kw_only=True)
class TrtReport:
    """What TensorRT said about one graph.

    ran: whether TensorRT was there to ask; passed: parsed, built, no fatal warning, every shape constant;
    engine_bytes: size of the engine it built; seconds: how long that took; peak_mib: the most MiB of memory that its
    process had. loaded: whether an engine that was kept was read back, None where no GPU driver was there to ask.
    """

    graph: str
    tool: str
    ran: bool
    passed: bool
    engine_bytes: int = 0
    seconds: float = 0.0
    peak_mib: float = 0.0
    loaded: bool | None = None
    problems: tuple[str, ...] = ()


def check_with_rtx(graph: Path, engine: Path | None = None) -> TrtReport:
    """Parse and build `graph` with TensorRT for RTX on the CPU; `ran` is false if it is not here.

    The engine is kept in the file `engine`, or not at all.
    """
    if importlib.util.find_spec("tensorrt_rtx") is None:
        missing = "tensorrt-rtx is not installed (pip install 'tokcarve[check]')"
        return TrtReport(graph=graph.name, tool="tensorrt-rtx", ran=False, passed=False, problems=(missing,))
    return _ask("tensorrt_rtx", graph, engine)


def gpu_for(target: Target | None) -> bool:
    """Whether TensorRT (not the RTX checker) and a GPU are here that engines can be built with: one of the target's
    compute capability where there is a target, and a TensorRT that it means."""
    if importlib.util.find_spec("tensorrt") is None:
        return False
    import torch

    if not torch.cuda.is_available():
        return False
    if target is None:
        return True
    here = ".".join(importlib.metadata.version("tensorrt").split(".")[:2])
    meant = [name for name in target.names if f"{here}.".startswith(f"{name}.")]
    return bool(meant) and torch.cuda.get_device_capability() in target.board.compute


def build_engine(graph: Path, engine: Path, timing: Path) -> TrtReport:
    """Build the engine of `graph` for this machine's GPU into `engine`; ExportError says why if TensorRT refuses.

    What was timed is kept in the file `timing` for the next engine.
    """
    report = _ask("tensorrt", graph, engine, timing)
    if not report.passed:
        engine.unlink(missing_ok=True)
        raise ExportError(f"TensorRT did not build an engine of {graph.name}: {report.problems[0]}")
    return report


def _ask(module: str, graph: Path, *kept: Path | None) -> TrtReport:
    files = [str(path.resolve()) for path in (graph, *kept) if path is not None]
    command = [sys.executable, "-m", "tokcarve.exporters.trt_worker", module, *files]
    tool = module.replace("_", "-")
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_LIMIT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return _failed(tool, graph, f"it did not finish within {_LIMIT} s")
    if done.returncode < 0:
        return _failed(tool, graph, f"the builder crashed (signal {-done.returncode})")
    try:
        said = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return _failed(tool, graph, f"the builder stopped (exit code {done.returncode}): {last}")
    problems = _problems(said)
    return TrtReport(
        graph=graph.name,
        tool=f"{tool} {said['version']}",
        ran=True,
        passed=not problems,
        engine_bytes=said["bytes"],
        seconds=said["seconds"],
        peak_mib=said["peak_mib"],
        loaded=said["loaded"],
        problems=tuple(problems),
    )


def _failed(tool: str, graph: Path, why: str) -> TrtReport:
    return TrtReport(graph=graph.name, tool=tool, ran=True, passed=False, problems=(why,))


def _problems(said: Mapping[str, Any]) -> list[str]:
    errors, warnings, dynamic = (list(said[key]) for key in ("errors", "warnings", "dynamic"))
    problems = [" ".join(text.split()) for text in errors]
    problems += [" ".join(text.split()) for text in warnings if _FATAL.search(text)]
    if dynamic:
        problems.append(f"the shapes of {', '.join(dynamic[:3])} depend on data")
    if not problems and not said["parsed"]:
        problems.append("the graph was not parsed")
    if not problems and not said["bytes"]:
        problems.append("no engine was built")
    if not problems and said["loaded"] is False:
        problems.append(f"the engine cannot be read back: {said['load_errors'][0]}")
    return problems
