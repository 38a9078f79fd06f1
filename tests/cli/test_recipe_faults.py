"""`tokcarve recipes FILE` names every fault of a file at once."""

from pathlib import Path

import pytest
from refusals import refused
from typer.testing import CliRunner

from tokcarve.cli.main import app
from tokcarve.recipes.files import load_recipe


@pytest.mark.parametrize("line", ["model: {{ name }}", "[1]: 3"])
def test_a_key_that_is_no_word(tmp_path: Path, line: str) -> None:
    (tmp_path / "bad.yaml").write_text(f"{line}\n")
    assert "a key must be a word" in refused("recipes", tmp_path / "bad.yaml")


def test_numbers_with_an_exponent_are_numbers(tmp_path: Path) -> None:
    for number in ("3.0e9", "3e9", "3.0e+9"):
        text = f"model: tiny\nmethod: {{name: fastv}}\nbudget: {{prefill_flops: {number}}}\n"
        (tmp_path / "one.yaml").write_text(text)
        assert load_recipe(tmp_path / "one.yaml").budget.prefill_flops == 3e9


def test_every_fault_of_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("modle: tiny\nmethod: {name: flowcut, emaa: 1}\nbudget: {tokens: 0}\n")
    result = CliRunner().invoke(app, ["recipes", str(path)])
    assert result.exit_code == 2 and result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 3 and all(line.startswith(f"{path}: ") for line in lines)
    assert "did you mean 'model'" in result.stderr and "did you mean 'ema'" in result.stderr
    path.write_text("model: tiny\nmethod: {name: flowcut}\nbudget: {tokens: 8}\n")
    result = CliRunner().invoke(app, ["recipes", str(path)])
    assert result.exit_code == 0 and "none" in next(line for line in result.stdout.splitlines() if "faults" in line)
