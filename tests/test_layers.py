"""Which part may import which, and what must work without torch, transformers and onnx."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
BELOW = {
    "tiny": set(),
    "passes": {"tiny"},
    "recipes": {"passes", "tiny"},
    "exporters": {"recipes", "passes", "tiny"},
    "cli": {"exporters", "recipes", "passes", "tiny"},
}
TORCH_FREE = (
    "tokcarve",
    "tokcarve.cli.main",
    "tokcarve.exporters.device",
    "tokcarve.exporters.pictures.exported",
    "tokcarve.exporters.pictures.looking",
    "tokcarve.exporters.pictures.page",
    "tokcarve.exporters.pictures.sheet",
    "tokcarve.exporters.evaluation",
    "tokcarve.exporters.evaluation.lmms",
    "tokcarve.recipes.journal",
    "tokcarve.passes.budget",
    "tokcarve.passes.checkpoint",
    "tokcarve.passes.errors",
    "tokcarve.passes.flops",
    "tokcarve.passes.geometry",
    "tokcarve.passes.inputs.pictures",
    "tokcarve.passes.inputs.samples",
    "tokcarve.passes.shards",
    "tokcarve.recipes.artifact",
    "tokcarve.recipes.files",
    "tokcarve.recipes.make",
    "tokcarve.recipes.manifest",
    "tokcarve.recipes.schema",
    "tokcarve.tiny",
)
BARE = "import typer\napp = typer.Typer()\napp.command('verb')(lambda: None)\napp(['--help'])"
BLOCKED = ("torch", "torchvision", "transformers", "onnx", "onnxscript", "onnx_ir", "safetensors", "huggingface_hub")


def _imports(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize("layer", BELOW)
def test_imports_point_down(layer: str) -> None:
    for file in (ROOT / layer).rglob("*.py"):
        for name in _imports(file):
            parts = name.split(".")
            if parts[0] == "tokcarve" and len(parts) > 1 and parts[1] in BELOW:
                assert parts[1] in BELOW[layer] | {layer}, f"{file.relative_to(ROOT)} imports {name}, which is above it"


def test_a_device_needs_neither_torch_nor_transformers_nor_onnx() -> None:
    device = [f"tokcarve.exporters.device.{file.stem}" for file in (ROOT / "exporters" / "device").glob("[!_]*.py")]
    verbs = [f"tokcarve.cli.{file.stem}" for file in (ROOT / "cli").glob("[!_]*.py")]
    script = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({BLOCKED!r}))\n"
        "from importlib import import_module\n"
        f"for name in {[*TORCH_FREE, *device, *verbs]!r}:\n"
        "    import_module(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_help_is_quick_and_loads_nothing_large() -> None:
    script = (
        "import sys\n"
        "sys.argv = ['tokcarve', '--help']\n"
        "from tokcarve.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code\n"
        "large = {'torch', 'transformers', 'onnx', 'onnxruntime', 'numpy', 'pydantic', 'tokenizers'}\n"
        "assert not large & set(sys.modules), large & set(sys.modules)\n"
    )
    # beside the smallest command line of this kind: a slow machine is slow at both
    ours, least = (min(_processor_seconds(one) for _ in range(3)) for one in (script, BARE))
    assert ours < 2 * least, f"tokcarve --help took {ours:.2f} s, that of an empty program {least:.2f} s"


def _processor_seconds(script: str) -> float:
    """What a Python process took of the processor: the wall clock of a busy machine says little."""
    before = os.times()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    after = os.times()
    assert done.returncode == 0, done.stderr
    return after.children_user + after.children_system - before.children_user - before.children_system
