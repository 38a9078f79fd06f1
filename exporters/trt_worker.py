"""Parse and build one ONNX graph with TensorRT in a process of its own, because a builder may crash.

    python -m tokcarve.exporters.trt_worker tensorrt_rtx GRAPH [ENGINE [TIMING_CACHE]]

Prints one JSON object: version, parsed, errors, warnings, dynamic (tensors without a constant shape), bytes (of the
engine, 0 if none was built), seconds, peak_mib (the most memory of this process). With ENGINE the engine is written
there and read back: `loaded` says whether it could be, null where there is no GPU driver, and `load_errors` why not.
TIMING_CACHE is read where it is there, and written with what was timed.
"""

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from tokcarve.exporters.device.peak import peak_mib

__all__ = ["build", "load"]

# what TensorRT says before anything else of an engine where it finds no driver
_NO_DRIVER = ("CUDA driver version is insufficient", "no CUDA-capable device", "libcuda")


def build(module: str, graph: Path, engine: Path | None = None, timing: Path | None = None) -> dict[str, Any]:
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
    plan = _plan(module, trt, builder, network, timing) if parsed else None
    read_back: dict[str, Any] = {"loaded": None, "load_errors": []}
    if engine is not None and plan is not None:
        engine.write_bytes(memoryview(plan))
        read_back = load(module, engine)
    return {
        "version": str(trt.__version__),
        "parsed": parsed,
        "errors": errors + logger.lines("ERROR"),
        "warnings": logger.lines("WARNING"),
        "dynamic": dynamic,
        "bytes": int(plan.nbytes) if plan is not None else 0,
        "seconds": round(time.perf_counter() - started, 2),
        "peak_mib": round(peak_mib(), 1),
        **read_back,
    }


def load(module: str, engine: Path) -> dict[str, Any]:
    """Whether the runtime of `module` takes the engine in a file: loaded (true, false, or None where it found no GPU
    driver and had nothing against the file before it asked for one) and load_errors."""
    trt: Any = importlib.import_module(module)
    logger = _logger(trt)
    found = trt.Runtime(logger).deserialize_cuda_engine(engine.read_bytes())
    errors = logger.lines("ERROR")
    if found is not None:
        return {"loaded": True, "load_errors": []}
    asked = bool(errors) and any(words in errors[0] for words in _NO_DRIVER)
    return {"loaded": None if asked else False, "load_errors": errors or ["the runtime gave no engine and no reason"]}


def _plan(module: str, trt: Any, builder: Any, network: Any, timing: Path | None) -> Any:
    config = builder.create_builder_config()
    if module == "tensorrt":
        # it would round what the graph calls float32 to ten bits, and scores to ties
        config.clear_flag(trt.BuilderFlag.TF32)
    if timing is None:
        return builder.build_serialized_network(network, config)
    cache = config.create_timing_cache(timing.read_bytes() if timing.is_file() else b"")
    config.set_timing_cache(cache, False)
    plan = builder.build_serialized_network(network, config)
    timing.write_bytes(memoryview(config.get_timing_cache().serialize()))
    return plan


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
    print(json.dumps(build(sys.argv[1], *map(Path, sys.argv[2:]))))
