"""What a verb says, as text and as JSON whose keys docs/json.md promises."""

import json
import re
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from tokcarve.cli.main import app

__all__ = ["documented", "said", "told"]

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "json.md").read_text()


def said(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout


def told(*words: object) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(said(*words, "--json"))
    assert (fields.pop("format"), fields.pop("verb")) == (1, str(words[0]))
    assert set(fields) == documented(str(words[0]))
    return fields


def documented(verb: str) -> set[str]:
    """The keys that docs/json.md promises for a verb."""
    section = PAGE.split(f"## `{verb}`\n")[1].split("\n## ")[0]
    return {key for line in section.splitlines() if line.startswith("- ") for key in re.findall(r"`(\w+)`", line)[:1]}
