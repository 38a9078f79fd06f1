"""`tokcarve verify`: a true export holds, and every way of tampering with one is found and named."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from device_shell import on_a_device
from exported import MAX_NEW, MAX_TEXT, make_artifact, make_export, reseal
from typer.testing import CliRunner, Result

from tokcarve.cli.main import app
from tokcarve.exporters.device.face import EXPORT, FOLDER, read_export


def verify(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["verify", *map(str, arguments)])


def report(*arguments: object) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(verify(*arguments, "--json").stdout)
    return fields


@pytest.fixture(scope="module")
def true(tmp_path_factory: pytest.TempPathFactory) -> Path:
    artifact = make_artifact(tmp_path_factory.mktemp("verify"))
    make_export(artifact)
    shutil.rmtree(artifact.parent / "base")
    return artifact


@pytest.fixture
def copied(true: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(true, tmp_path / "copy"))


def test_a_true_export_holds_without_its_checkpoint(true: Path) -> None:
    said = report(true)
    assert list(said) == ["format", "verb", "artifact", "passed", "provider", "checks", "not_checked"]
    assert said["passed"] and said["provider"] == "CPUExecutionProvider"
    names = [check["name"] for check in said["checks"]]
    assert len(names) == len(set(names)) and all(check["passed"] for check in said["checks"])
    assert {"onnx/weights.data: content", "vision.onnx: valid ONNX, static", "pruned: kept indices", "power"} <= {
        *names
    }
    assert {"unpruned: greedy tokens", "unpruned: logits", "pruned: image features"} <= {*names}
    assert any("checkpoint" in text for text in said["not_checked"])
    assert any("TensorRT" in text for text in said["not_checked"])


def test_people_see_what_held(true: Path) -> None:
    done = verify(true)
    assert done.exit_code == 0 and "passed" in done.stdout and "failed" not in done.stdout
    assert "8 files" in done.stdout and "equal on" in done.stdout


def test_it_runs_without_torch_transformers_and_onnx(true: Path) -> None:
    done = on_a_device("verify", true, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["passed"] and "pruned: greedy tokens" in {check["name"] for check in said["checks"]}
    assert any("onnx is not installed" in text for text in said["not_checked"])


def test_tensorrt_is_asked_when_told(true: Path) -> None:
    said = report(true, "--trt")
    assert said["passed"] and "vision.onnx: TensorRT lint" in {check["name"] for check in said["checks"]}
    assert any("no TensorRT engine" in text for text in said["not_checked"])


def flip_a_weight(face: Path) -> None:
    raw = bytearray((face / FOLDER / "weights.data").read_bytes())
    raw[3] ^= 0x40
    (face / FOLDER / "weights.data").write_bytes(raw)


def swap_graphs(face: Path) -> None:
    (face / FOLDER / "vision.onnx").rename(face / FOLDER / "other")
    (face / FOLDER / "baseline.vision.onnx").rename(face / FOLDER / "vision.onnx")
    (face / FOLDER / "other").rename(face / FOLDER / "baseline.vision.onnx")


def lose_a_graph(face: Path) -> None:
    (face / FOLDER / "decode.onnx").unlink()


def add_a_file(face: Path) -> None:
    (face / FOLDER / "more.onnx").write_bytes(b"")


def change_the_answer(face: Path) -> None:
    arrays = dict(np.load(face / "golden.npz"))
    np.savez(face / "golden.npz", **arrays | {"tokens": arrays["tokens"] + 1})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (flip_a_weight, "onnx/weights.data: content: SHA-256 is"),
        (swap_graphs, "onnx/baseline.vision.onnx: content: SHA-256 is"),
        (lose_a_graph, "onnx/decode.onnx: content: the file is missing"),
        (add_a_file, "files that were not exported: onnx/more.onnx is not in the record"),
        (change_the_answer, "golden.npz: content: SHA-256 is"),
    ],
)
def test_a_tampered_file_is_named(copied: Path, change: Callable[[Path], None], words: str) -> None:
    change(copied / EXPORT)
    done = verify(copied)
    assert done.exit_code == 2 and words in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert any("were not run" in text for text in report(copied)["not_checked"])


def test_the_changed_tensor_is_named(copied: Path) -> None:
    record = read_export(copied)
    name, stored = list(record.tensors.items())[7]
    path = copied / EXPORT / FOLDER / "weights.data"
    raw = bytearray(path.read_bytes())
    raw[stored.offset + stored.bytes - 1] ^= 0x40
    path.write_bytes(raw)
    assert f"; of {len(record.tensors)} tensors the first that changed is {name}" in verify(copied).stderr


def scale_weights(face: Path) -> None:
    values = np.fromfile(face / FOLDER / "weights.data", np.float32)
    (values * 1.05).astype(np.float32).tofile(face / FOLDER / "weights.data")


def keep_others(face: Path) -> None:
    """Take the least attended tokens."""
    model = onnx.load(face / FOLDER / "vision.onnx", load_external_data=False)
    chosen = next(node for node in model.graph.node if node.op_type == "TopK")
    largest = next(attribute for attribute in chosen.attribute if attribute.name == "largest")
    largest.i = 1 - largest.i
    onnx.save(model, face / FOLDER / "vision.onnx")


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (scale_weights, {"pruned: logits", "unpruned: logits"}),
        (swap_graphs, {"pruned: the graphs run", "unpruned: the graphs run"}),
        (keep_others, {"pruned: kept indices"}),
        (change_the_answer, {"pruned: greedy tokens"}),
    ],
)
def test_hashes_that_were_made_to_fit_do_not_hide_it(
    copied: Path, change: Callable[[Path], None], names: set[str]
) -> None:
    change(copied / EXPORT)
    reseal(copied)
    found = report(copied)
    failed = {check["name"] for check in found["checks"] if not check["passed"]}
    assert not found["passed"] and failed >= names, found["checks"]
    assert verify(copied).exit_code == 2


def test_an_edited_record_is_refused(copied: Path) -> None:
    path = copied / EXPORT / "export.json"
    path.write_text(path.read_text().replace(f'"max_text": {MAX_TEXT}', f'"max_text": {MAX_TEXT + 1}'))
    done = verify(copied)
    assert done.exit_code == 2 and "does not match its digest" in done.stderr


def test_what_is_no_export_is_refused(tmp_path: Path, true: Path) -> None:
    assert verify(tmp_path / "missing").exit_code == 2
    shutil.copytree(true, tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare" / "export")
    done = verify(tmp_path / "bare")
    assert done.exit_code == 2 and "write it with `tokcarve export" in done.stderr


def test_old_golden_files_are_refused(copied: Path) -> None:
    face = copied / EXPORT
    arrays = dict(np.load(face / "golden.npz"))
    np.savez(face / "golden.npz", **{name: one for name, one in arrays.items() if not name.startswith("plain.")})
    reseal(copied)
    done = verify(copied)
    assert done.exit_code == 2 and "holds no golden samples" in done.stderr
    assert MAX_NEW == arrays["tokens"].shape[1]
