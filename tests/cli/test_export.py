"""`tokcarve export`: what it prints, its JSON, and its refusals."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from exported import MAX_NEW, MAX_TEXT, make_artifact
from typer.testing import CliRunner, Result

from tokcarve.cli.main import app
from tokcarve.exporters.device.face import EXPORT


def export(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["export", *map(str, arguments)])


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("cli"), "random")


@pytest.fixture(scope="module")
def answer(artifact: Path) -> dict[str, Any]:
    done = export(artifact, "--max-text", MAX_TEXT, "--max-new", MAX_NEW, "--trt", "--json")
    assert done.exit_code == 0, done.output
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def test_json_has_the_documented_shape(answer: dict[str, Any]) -> None:
    assert list(answer) == ["format", "verb", "directory", "seconds", "weight_bytes", "graphs", "trt", "record"]
    assert answer["verb"] == "export"
    keys = ["name", "nodes", "selection_nodes", "graph_bytes", "weight_bytes", "seconds"]
    assert [list(graph) for graph in answer["graphs"]] == [keys] * 8
    assert list(answer["trt"]) == ["said", "engines", "script"]
    assert all(check["passed"] for check in answer["record"]["checks"])
    assert (answer["record"]["target"], answer["record"]["opset"], answer["record"]["engines"]) == (None, 18, [])


def test_what_happened_with_tensorrt_is_said(answer: dict[str, Any], artifact: Path) -> None:
    script = artifact / EXPORT / "trt" / "build_trt.sh"
    if answer["trt"]["engines"]:
        pytest.skip("engines were built here")
    assert "No TensorRT engine was built here" in answer["trt"]["said"]
    assert script.is_file()
    assert "trt/build_trt.sh" in answer["record"]["files"]


def test_an_existing_export_needs_force(answer: dict[str, Any], artifact: Path) -> None:
    done = export(artifact)
    assert done.exit_code == 2
    assert "--force" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(("--batch", 0), "--batch 0"), (("--max-text", 1), "--max-text 1"), (("--max-new", 10_000), "positions")],
)
def test_sizes_that_cannot_be_exit_with_2(
    arguments: tuple[object, ...], words: str, answer: dict[str, Any], artifact: Path
) -> None:
    done = export(artifact, "--force", *arguments)
    assert done.exit_code == 2
    assert words in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--target", "orin"), "add --trt"),
        (("--trt", "--target", "l4"), "no board 'l4'"),
        (("--trt", "--target", "orin@jp6+11"), "no JetPack 6 with TensorRT 11"),
        (("--trt", "--opset", 21), "--opset 21"),
        (("--opset", 24), "--opset 24"),
    ],
)
def test_what_tensorrt_cannot_be_exits_with_2(
    arguments: tuple[object, ...], words: str, answer: dict[str, Any], artifact: Path
) -> None:
    done = export(artifact, "--force", *arguments)
    assert done.exit_code == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert (artifact / EXPORT).exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("--precision", "fp8"),
            "--precision fp8 is none that export writes; give one of fp32, fp16, bf16, int8, int4",
        ),
        (("--precision", "int4", "--reference-weights"), "--precision int4 quantises them"),
        (("--precision", "int4", "--trt", "--target", "orin@10.3"), "--precision int4 is written in opset 21"),
        (("--precision", "fp16", "--face", "hf"), "face hf is written in fp32 alone"),
    ],
)
def test_precisions_that_cannot_be_exit_with_2(
    arguments: tuple[object, ...], words: str, answer: dict[str, Any], artifact: Path
) -> None:
    done = export(artifact, "--force", *arguments)
    assert done.exit_code == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert (artifact / EXPORT).exists()


def test_json_names_the_precision_and_what_pruning_does(answer: dict[str, Any]) -> None:
    record = answer["record"]
    assert (record["precision"], record["dtype"]) == ("fp32", "float32")
    assert list(record["quality"]) == ["samples", "tokens", "rows"]
    assert [row["graphs"] for row in record["quality"]["rows"]] == ["fp32", "fp32, pruned"]
    assert list(record["quality"]["rows"][0]) == ["graphs", "agreement", "kl"]


def test_a_directory_that_is_no_artifact_exits_with_2(tmp_path: Path) -> None:
    assert export(tmp_path).exit_code == 2
    assert export(tmp_path / "missing").exit_code == 2


def test_without_an_artifact_the_last_one_is_meant(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    done = export()
    assert done.exit_code == 2
    assert "tokcarve compress" in done.stderr


def test_an_edited_manifest_is_refused(answer: dict[str, Any], artifact: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(artifact, tmp_path / "copy"))
    manifest = copied / "tokcarve.json"
    manifest.write_text(manifest.read_text().replace('"tokens": 16', '"tokens": 17'))
    done = export(copied, "--force")
    assert done.exit_code == 2
    assert "digest" in done.stderr
