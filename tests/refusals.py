"""A command that must be refused: exit code 2, one sentence on stderr, nothing on stdout, nothing written."""

from pathlib import Path

from typer.testing import CliRunner

from tokcarve.cli.main import app

__all__ = ["refused", "tree"]


def tree(directory: Path) -> dict[str, bytes]:
    """Every file below `directory` by its relative path."""
    return {str(f.relative_to(directory)): f.read_bytes() for f in sorted(directory.rglob("*")) if f.is_file()}


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
