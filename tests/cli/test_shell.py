"""What a shell sees: completion of values, and colours where they are wanted alone."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from spoken import said, told

from tokcarve.cli import complete
from tokcarve.passes.methods import METHODS

TOKCARVE = [sys.executable, "-m", "tokcarve.cli"]


def test_values_that_begin_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tidy").mkdir()
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "thor.yaml").write_text("")
    assert complete.methods("") == list(METHODS) and complete.methods("fast") == ["fastv"]
    assert complete.models("ti") == ["tiny", "tidy/"]
    assert complete.models("") == [*complete.models("")[:-1], "tidy/"], "what is hidden is not offered"
    assert complete.boards("orin-n") == ["orin-nx", "orin-nano"]
    assert complete.boards("thor@10") == ["thor@10.13", "thor@10.16"]
    assert complete.recipes("thor")[-1] == "thor.yaml" and "thor-13b-visionzip-64" in complete.recipes("thor")
    assert complete.precisions("int") == ["int8", "int4"]
    (tmp_path / "tidy" / "inner").mkdir()
    assert complete.models("tidy/") == ["tidy/inner/"] and complete.models("no/such") == []


def test_a_shell_is_answered() -> None:
    asked = {"_TOKCARVE_COMPLETE": "complete_bash", "COMP_WORDS": "tokcarve plan --method fast", "COMP_CWORD": "3"}
    done = subprocess.run(TOKCARVE, capture_output=True, text=True, env={**os.environ, **asked}, check=False)
    assert done.stdout.split() == ["fastv"], done.stderr


def test_completion_can_be_set_up() -> None:
    assert "--install-completion" in said("--help")


def on_a_terminal(*words: str, **env: str) -> bytes:
    """What `tokcarve WORDS` says where stdout and stderr are a terminal."""
    pty = pytest.importorskip("pty")
    inner, outer = pty.openpty()
    usual = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    child = subprocess.Popen([*TOKCARVE, *words], stdout=outer, stderr=outer, env={**usual, "TERM": "xterm", **env})
    os.close(outer)
    text = b""
    while True:
        try:
            part = os.read(inner, 4096)
        except OSError:  # the other end was closed
            break
        if not part:
            break
        text += part
    child.wait()
    os.close(inner)
    return text


@pytest.mark.parametrize("words", [("recipes", "tiny-fastv-64"), ("recipes", "no-such-recipe")])
def test_colours_are_for_terminals_that_want_them(words: tuple[str, ...]) -> None:
    colour = b"\x1b[3"
    assert colour in on_a_terminal(*words), "otherwise this test says nothing"
    assert colour not in on_a_terminal(*words, NO_COLOR="1")
    piped = subprocess.run([*TOKCARVE, *words], capture_output=True, env={**os.environ, "TERM": "xterm"}, check=False)
    assert b"\x1b" not in piped.stdout + piped.stderr


def test_recipes_are_listed_shown_and_checked() -> None:
    listed = told("recipes")["recipes"]
    (one,) = told("recipes", "orin-nx-7b-hiprune-64")["recipes"]
    assert one in listed and one["target"] == "orin-nx@10.16" and one["recipe"]["method"]["name"] == "hiprune"
    assert one["commands"][1] == "tokcarve compress --recipe orin-nx-7b-hiprune-64"
    text = said("recipes", "orin-nx-7b-hiprune-64")
    assert "budget: {tokens: 64}" in text and text.rstrip().endswith(one["commands"][-1])
