"""A command that must be refused: exit code 2, one sentence on stderr, nothing on stdout, nothing written."""

import os
from pathlib import Path

from typer.testing import CliRunner

from tokcarve.cli.main import app

__all__ = ["refused", "tree"]

CACHES = {".git", ".venv", ".hypothesis", ".pytest_cache", ".mypy_cache", ".ruff_cache", "__pycache__"}
"""What other tests may write meanwhile where the working directory is the repository."""


def tree(directory: Path) -> dict[str, bytes]:
    """Every file below `directory` by its relative path, but for CACHES."""
    found: dict[str, bytes] = {}
    for folder, inside, files in os.walk(directory):
        inside[:] = [name for name in inside if name not in CACHES]
        found |= {str(f.relative_to(directory)): f.read_bytes() for f in map(Path(folder).joinpath, files)}
    return found


def refused(*words: object) -> str:
    """The sentence with which `tokcarve WORDS` is refused in the working directory."""
    before = tree(Path.cwd())
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert tree(Path.cwd()) == before, "something was written"
    text = result.stderr.strip()
    assert "\n" not in text and "Traceback" not in text and len(text) > 20
    return text
