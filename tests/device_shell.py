"""The command line as on a device: in a process of its own, where only the base dependencies can be imported."""

import os
import subprocess
import sys
from pathlib import Path

__all__ = ["on_a_device"]


def on_a_device(*arguments: object) -> "subprocess.CompletedProcess[str]":
    """`tokcarve ARGUMENTS` where neither it nor its child processes can import torch, transformers or onnx."""
    path = os.pathsep.join([str(Path(__file__).parent / "no_torch"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "tokcarve.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, check=False)
