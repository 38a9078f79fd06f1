"""`tokcarve recipes FILE` names every fault of a file at once."""

from pathlib import Path

from typer.testing import CliRunner

from tokcarve.cli.main import app


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
