"""`tokcarve profile`: what it prints, what it refuses, and that it needs no torch."""

import json
from pathlib import Path

import pytest
from device_shell import on_a_device
from toy_face import write_toy
from typer.testing import CliRunner, Result

from tokcarve.cli.main import app


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("profile") / "toy"
    write_toy(directory)
    return directory


def measure(*arguments: object, columns: int = 80) -> Result:
    return CliRunner().invoke(app, ["profile", *map(str, arguments)], env={"COLUMNS": str(columns)})


def test_json_is_the_profile(toy: Path) -> None:
    done = measure(toy, "--repeats", 2, "--max-new", 3, "--json")
    assert done.exit_code == 0, done.stderr
    fields = json.loads(done.stdout)
    assert fields["verb"] == "profile" and fields["max_new"] == 3 and fields["repeats"] == 2
    assert fields["stages"]["prefill"]["speedup"] > 0 and fields["verdict"].startswith("prefill ")


@pytest.mark.parametrize("columns", [80, 120])
def test_the_tables_fit_the_screen(toy: Path, columns: int) -> None:
    done = measure(toy, "--repeats", 2, columns=columns)
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    tables = lines[: next(place for place, line in enumerate(lines) if line.startswith("prefill ") and ";" in line)]
    assert all(len(line) <= columns for line in tables)
    for name in (
        "encoder",
        "prefill",
        "first token",
        "decode step",
        "end to end",
        "KV MiB",
        "selector",
        "CPU, float32",
    ):
        assert any(line.strip().startswith(name) or name in line for line in tables), name
    header = next(line for line in lines if "unpruned" in line)
    assert header.split() == ["pruned", "p95", "unpruned", "p95", "gain", "possible", "reached"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--max-new", 13], "choose 1..12"), (["--repeats", 0], "measures nothing"), (["--threads", -1], "threads=-1")],
)
def test_bad_numbers_are_one_sentence_and_exit_code_2(toy: Path, arguments: list[object], message: str) -> None:
    done = measure(toy, *arguments)
    assert done.exit_code == 2 and message in done.stderr and not done.stdout


def test_no_export_is_named(tmp_path: Path) -> None:
    write_toy(tmp_path)
    (tmp_path / "export" / "export.json").unlink()
    done = measure(tmp_path)
    assert done.exit_code == 2 and "write it with `tokcarve export" in done.stderr


def test_it_runs_without_torch_transformers_and_onnx(toy: Path) -> None:
    done = on_a_device("profile", toy, "--repeats", 1, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["stages"]
