"""TensorRT: check a graph without a GPU, build an engine where there is one, write a script for the device."""

import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokcarve.passes.errors import ExportError

__all__ = ["TrtReport", "build_engine", "build_script", "can_build_engines", "check_with_rtx"]

# warnings after which an engine computes something else than the graph says
_FATAL = re.compile(r"unused input|is unused|clamp|truncat|overflow|will be ignored|is ignored|\bcast", re.IGNORECASE)
_LIMIT = 3600


@dataclass(frozen=True, kw_only=True)
class TrtReport:
    """What TensorRT said about one graph.

    ran: whether TensorRT was there to ask; passed: parsed, built, no fatal warning, every shape constant;
    engine_bytes: size of the engine it built; seconds: how long that took.
    """

    graph: str
    tool: str
    ran: bool
    passed: bool
    engine_bytes: int = 0
    seconds: float = 0.0
    problems: tuple[str, ...] = ()


def check_with_rtx(graph: Path) -> TrtReport:
    """Parse and build `graph` with TensorRT for RTX on the CPU, keeping nothing; `ran` is false if it is not here."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        missing = "tensorrt-rtx is not installed (pip install 'tokcarve[check]')"
        return TrtReport(graph=graph.name, tool="tensorrt-rtx", ran=False, passed=False, problems=(missing,))
    return _ask("tensorrt_rtx", graph, None)


def can_build_engines() -> bool:
    """Whether TensorRT (not the RTX checker) and a CUDA device are present here."""
    if importlib.util.find_spec("tensorrt") is None:
        return False
    import torch

    return torch.cuda.is_available()


def build_engine(graph: Path, engine: Path) -> TrtReport:
    """Build the engine of `graph` for this machine's GPU into `engine`; ExportError says why if TensorRT refuses."""
    report = _ask("tensorrt", graph, engine)
    if not report.passed:
        engine.unlink(missing_ok=True)
        raise ExportError(f"TensorRT did not build an engine of {graph.name}: {report.problems[0]}")
    return report


def _ask(module: str, graph: Path, engine: Path | None) -> TrtReport:
    command = [sys.executable, "-m", "tokcarve.exporters.trt_worker", module, str(graph.resolve())]
    tool = module.replace("_", "-")
    try:
        done = subprocess.run(
            command + ([str(engine.resolve())] if engine is not None else []),
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
    return problems


_SCRIPT = """\
#!/bin/sh
# Builds the TensorRT engines of this export. Run it on the device that will use them: an engine fits one GPU and one
# TensorRT version. Written for TensorRT 10.3 and later: JetPack 6 (10.3), JetPack 7 (10.13 and 10.16), TensorRT 11.
# The graphs have constant shapes and say in which precision they compute: no shape profiles or precision flags needed.
set -eu
cd "$(dirname "$0")"
trtexec=$(command -v trtexec || echo /usr/src/tensorrt/bin/trtexec)
[ -x "$trtexec" ] || {{ echo "no trtexec here; JetPack has it in the package libnvinfer-bin" >&2; exit 1; }}
# TensorRT 11 is always strongly typed and need not know the flag
typed=$("$trtexec" --help 2>&1 | grep -q stronglyTyped && echo --stronglyTyped || true)
mkdir -p engines
{lines}
"""


def build_script(graphs: Sequence[Path], weight_bytes: Mapping[str, int]) -> str:
    """A shell script that builds one engine per graph, with the memory each is expected to take.

    `weight_bytes` {graph file name: bytes of its weights}. A builder holds the weights about four times over: in the
    file, parsed, while it chooses kernels, and in the engine.
    """
    lines = []
    for graph in graphs:
        peak = 4 * weight_bytes.get(graph.name, 0) / 2**30 + 0.5
        lines.append(f"# {graph.name}: about {peak:.1f} GiB of memory at its peak (estimated, not measured)")
        lines.append(
            f'"$trtexec" --onnx=../onnx/{graph.name} --saveEngine=engines/{graph.stem}.engine $typed --skipInference'
        )
    return _SCRIPT.format(lines="\n".join(lines))
