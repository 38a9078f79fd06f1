"""What starts here: a provider of ONNX Runtime, or a TensorRT, tried in a process of its own, because it may crash.

    python -m tokcarve.exporters.device.starts providers|PROVIDER|tensorrt|tensorrt_rtx

prints one JSON object, {"providers": [...]} or {"version": ..., "why": null or what stands against it}. A provider
starts where a session of one node runs on it and gives the right answer; a TensorRT where it makes a builder.
"""

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

__all__ = ["one_node", "providers", "starts"]

_SECONDS = 60
_LIBRARY = re.compile(r"with error: (\S+): cannot open shared object file")
_TENSORRT = ("tensorrt", "tensorrt_rtx")


def providers() -> tuple[tuple[str, ...], str | None]:
    """The providers that ONNX Runtime was built with, and why there are none where there are none."""
    said = _ask("providers")
    return tuple(said.get("providers", ())), said["why"]


def starts(what: str) -> tuple[str | None, str | None]:
    """(version, why it does not start) of a provider or of "tensorrt" and "tensorrt_rtx"; why is None where it does."""
    said = _ask(what)
    return said.get("version"), said["why"]


def one_node() -> bytes:
    """An ONNX model of one node, y = x + x of float32 [4]: protobuf by hand, so that nothing need be installed."""
    shape = _field(1, _field(1, 4))
    tensor = _field(1, 1) + _field(2, shape)
    node = _field(1, b"x") + _field(1, b"x") + _field(2, b"y") + _field(4, b"Add")
    ends = [_field(1, name) + _field(2, _field(1, tensor)) for name in (b"x", b"y")]
    graph = _field(1, node) + _field(2, b"one") + _field(11, ends[0]) + _field(12, ends[1])
    return _field(1, 8) + _field(7, graph) + _field(8, _field(2, 18))


def _field(number: int, value: int | bytes) -> bytes:
    """One field of a protobuf message; all numbers here are below 128 but lengths."""
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2]) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    low, rest = value & 127, value >> 7
    return bytes([low]) if not rest else bytes([low | 128]) + _varint(rest)


def _command(what: str) -> list[str]:
    return [sys.executable, "-P", "-m", __spec__.name, what]


def _ask(what: str) -> dict[str, Any]:
    try:
        done = subprocess.run(_command(what), capture_output=True, text=True, timeout=_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return {"why": f"it did not start within {_SECONDS} s"}
    if done.returncode < 0:
        return {"why": f"it crashed (signal {-done.returncode})"}
    try:
        said: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        return {"why": (done.stderr.strip().splitlines() or ["it said nothing"])[-1]}
    missing = _LIBRARY.search(done.stderr)
    return said | {"why": f"the library {missing[1]} is not here"} if said["why"] and missing else said


def _provider(name: str) -> dict[str, Any]:
    import numpy as np
    import onnxruntime as ort

    from tokcarve.exporters.device.session import preload, start

    if name != "CPUExecutionProvider":
        preload()
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = start(Path("a graph of one node"), options, (name,), one_node())
    ran = session.get_providers()[0]
    x = np.arange(4, dtype=np.float32)
    (y,) = session.run(None, {"x": x})
    why = None if ran == name else f"ONNX Runtime took {ran} in its place"
    return {"version": ort.__version__, "why": why if np.array_equal(y, x + x) else "it computes 0 + 0 .. 3 + 3 wrong"}


def _tensorrt(module: str) -> dict[str, Any]:
    trt = importlib.import_module(module)
    found = {"version": str(trt.__version__)}
    trt.Builder(trt.Logger(trt.Logger.ERROR))
    return {**found, "why": None}


def _main(what: str) -> None:
    try:
        if what == "providers":
            import onnxruntime as ort

            said: dict[str, Any] = {"providers": ort.get_available_providers(), "why": None}
        else:
            said = _tensorrt(what) if what in _TENSORRT else _provider(what)
    except Exception as error:
        said = {"why": (str(error).strip().splitlines() or [type(error).__name__])[0]}
    print(json.dumps(said))


if __name__ == "__main__":
    _main(sys.argv[1])
