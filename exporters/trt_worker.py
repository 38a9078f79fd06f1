"""Parse and build one ONNX graph with TensorRT in a process of its own, because a builder may crash.

    python -m tokcarve.exporters.trt_worker tensorrt_rtx GRAPH [ENGINE]

Prints one JSON object: version, parsed, errors, warnings, dynamic (tensors without a constant shape), bytes (of the
engine, 0 if none was built), seconds. With ENGINE the engine is written there.
"""

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

__all__ = ["build"]


def build(module: str, graph: Path, engine: Path | None = None) -> dict[str, Any]:
    """The record described above; `module` is "tensorrt_rtx" or "tensorrt". ImportError when it is not installed."""
    trt: Any = importlib.import_module(module)
    started, logger = time.perf_counter(), _logger(trt)
    builder = trt.Builder(logger)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None or module == "tensorrt_rtx" else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    parsed = bool(parser.parse_from_file(str(graph)))
    errors = [_spell(parser.get_error(i)) for i in range(parser.num_errors)]
    dynamic = _dynamic(network) if parsed else []
    plan = builder.build_serialized_network(network, builder.create_builder_config()) if parsed else None
    if engine is not None and plan is not None:
        engine.write_bytes(memoryview(plan))
    return {
        "version": str(trt.__version__),
        "parsed": parsed,
        "errors": errors + logger.lines("ERROR"),
        "warnings": logger.lines("WARNING"),
        "dynamic": dynamic,
        "bytes": int(plan.nbytes) if plan is not None else 0,
        "seconds": round(time.perf_counter() - started, 2),
    }


def _logger(trt: Any) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc]
        """Keeps what TensorRT says, by severity."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.said: list[tuple[str, str]] = []

        def log(self, severity: Any, message: str) -> None:
            """Called by TensorRT."""
            self.said.append((str(severity).rsplit(".", 1)[-1], message))

        def lines(self, severity: str) -> list[str]:
            """What was said at this severity; errors include internal ones."""
            return [text for level, text in self.said if level == severity or severity in level]

    return Logger()


def _spell(error: Any) -> str:
    place = f" (node {error.node_name()!r}, {error.node_operator()})" if error.node_name() else ""
    return f"{error.desc()}{place}"


def _dynamic(network: Any) -> list[str]:
    """Names of tensors with a dimension that TensorRT does not know before it runs."""
    names = []
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        for k in range(layer.num_outputs):
            tensor = layer.get_output(k)
            if tensor is not None and any(size < 0 for size in tensor.shape):
                names.append(str(tensor.name))
    return names


if __name__ == "__main__":
    print(json.dumps(build(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]) if len(sys.argv) > 3 else None)))
