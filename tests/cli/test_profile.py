"""`tokcarve profile`: what it prints, what it refuses, and that it needs no torch."""

import json
import shutil
from pathlib import Path
from typing import Any

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
    done = measure(toy, "--repeats", 2, "--answers", "1,3", "--json")
    assert done.exit_code == 0, done.stderr
    fields = json.loads(done.stdout)
    assert fields["verb"] == "profile" and fields["max_new"] == 3 and fields["repeats"] == 2
    assert [one["new_tokens"] for one in fields["answers"]] == [1, 3]
    assert fields["stages"]["prefill"]["speedup"] > 0 and fields["verdict"].startswith("prefill ")


def test_its_record_is_kept_where_compare_looks_or_where_it_was_told(toy: Path, tmp_path: Path) -> None:
    printed = json.loads(measure(toy, "--repeats", 2, "--json").stdout)
    assert json.loads((toy / "profile.json").read_text()) == printed
    done = measure(toy, "--repeats", 2, "-o", tmp_path / "mine.json")
    assert f"written to {tmp_path / 'mine.json'}" in done.stdout
    assert json.loads((toy / "profile.json").read_text()) == printed != json.loads((tmp_path / "mine.json").read_text())


def test_an_artifact_that_cannot_be_written_is_still_measured(toy: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(toy, tmp_path / "toy", ignore=shutil.ignore_patterns("profile.json")))
    (other / "profile.json").mkdir()
    done = measure(other, "--repeats", 2)
    assert done.exit_code == 0 and "not kept: " in done.stdout, done.stderr


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
        "as FastV counts",
        "reaches",
        "clocks",
    ):
        assert any(line.strip().startswith(name) or name in line for line in tables), name
    header, answers = [line for line in lines if "unpruned" in line][:2]
    assert header.split() == ["pruned", "p95", "unpruned", "p95", "gain", "95", "%", "possible"]
    assert answers.split()[:5] == ["new", "tokens", "pruned", "unpruned", "gain"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--answers", "1,13"], "choose 1..12"),
        (["--answers", "1,many"], "--answers 1,many is not numbers with commas"),
        (["--repeats", 0], "measures nothing"),
        (["--repeats", "often"], "--repeats often is not a number, or auto"),
        (["--tolerance", 2], "tolerance=2 is no share"),
        (["--threads", -1], "threads=-1"),
        (["--trace", "missing/trace.json"], "no file can be written there"),
        (["--out", "profile.txt"], "is no .json file"),
    ],
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


def test_a_trace_is_written_beside(toy: Path, tmp_path: Path) -> None:
    place = tmp_path / "trace.json"
    done = measure(toy, "--repeats", 1, "--answers", 2, "--trace", place, "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["trace"] == str(place) and json.loads(place.read_text())["traceEvents"]


def test_it_measures_until_it_is_sure(toy: Path) -> None:
    done = measure(toy, "--seconds", 0.5, "--answers", 2, "--json")
    assert done.exit_code == 0, done.stderr
    fields = json.loads(done.stdout)
    assert fields["repeats"] is None and fields["tolerance"] == 0.03
    for stage in fields["stages"].values():
        assert stage["rounds"] >= 10
        within = [(high - low) / 2 / middle <= 0.03 for low, high, middle in _intervals(stage)]
        assert stage["tight"] == (len(within) == 3 and all(within))


def _intervals(stage: dict[str, Any]) -> list[tuple[float, float, float]]:
    sides = [(stage[side]["interval_ms"], stage[side]["p50_ms"]) for side in ("pruned", "unpruned")]
    return [(*ends, middle) for ends, middle in (*sides, (stage["speedup_interval"], stage["speedup"])) if ends]
