"""An export for TensorRT for RTX: engines that a CPU built, and what verify makes of such an export."""

import shutil
from pathlib import Path

import onnx
import pytest
from exported import make_artifact, make_export
from onnx.parser import parse_model

from tokcarve.exporters.device.boards import find_target
from tokcarve.exporters.device.face import EXPORT, FOLDER, ExportRecord, file_record, read_export, seal
from tokcarve.exporters.export import ExportResult
from tokcarve.exporters.recheck import recheck
from tokcarve.exporters.trt import prove_trt
from tokcarve.exporters.trt_worker import load

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
pytestmark = pytest.mark.tensorrt

NAMES = ("vision", "embedding", "prefill", "decode")


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    artifact = make_artifact(tmp_path_factory.mktemp("target"), "random", text_layers=1)
    return make_export(artifact, faces=("ort", "trt"), target="rtx", opset=22)


@pytest.fixture
def copied(result: ExportResult, tmp_path: Path) -> Path:
    return Path(shutil.copytree(result.directory.parent, tmp_path / "copy"))


def rewrite(artifact: Path, **changes: object) -> ExportRecord:
    """The record with changes, and with the files as they are now."""
    place = artifact / EXPORT
    record = read_export(artifact)
    files = {name: file_record(place / name) for name in record.files}
    changed = record.model_copy(update={"files": files, **changes})
    (place / "export.json").write_text(seal(changed))
    return changed


def test_engines_are_files_of_the_export_with_what_they_took(result: ExportResult) -> None:
    record = result.record
    assert (record.target, record.opset) == ("rtx", 22)
    graphs = [f"{side}{name}.onnx" for side in ("", "baseline.") for name in NAMES]
    assert [engine.graph for engine in record.engines] == graphs
    for engine in record.engines:
        assert engine.file == f"trt/engines/{engine.graph.removesuffix('.onnx')}.engine"
        assert record.files[engine.file].bytes == engine.bytes == (result.directory / engine.file).stat().st_size > 0
        assert engine.tool.startswith("tensorrt-rtx 1.")
        assert engine.seconds > 0
        assert engine.peak_mib > 50
        assert engine.loaded is not False
    assert not (result.directory / "trt" / "build_trt.sh").exists()


def test_nothing_is_claimed_of_a_gpu(result: ExportResult) -> None:
    proof = result.proofs["trt"]
    assert proof.said is not None
    assert "ahead of time on the CPU; no GPU ran them" in proof.said
    left = " ".join(result.record.not_checked)
    assert "no GPU ran one" in left
    unread = any(engine.loaded is None for engine in result.record.engines)
    assert ("not deserialised" in left) == unread


def test_graphs_are_in_the_opset_that_was_asked_for(result: ExportResult) -> None:
    for path in sorted((result.directory / FOLDER).glob("*.onnx")):
        assert onnx.load(path, load_external_data=False).opset_import[0].version == 22


def test_the_lint_is_for_the_target_alone(result: ExportResult) -> None:
    lint = [check for check in result.record.checks if check.name.endswith("TensorRT lint")]
    assert len(lint) == 8
    assert {check.detail for check in lint} == {"nothing that TensorRT rtx-1.7 would refuse"}


def test_verify_repeats_the_lint_of_what_was_claimed(result: ExportResult) -> None:
    report = recheck(result.directory.parent)
    assert not report.failed
    lint = [check for check in report.checks if check.name.endswith("TensorRT lint")]
    assert len(lint) == 8 and all("rtx-1.7" in check.detail and "10.3" not in check.detail for check in lint)
    assert "no TensorRT engine was run" in report.not_checked


def test_verify_finds_that_the_graphs_are_not_for_a_target(copied: Path) -> None:
    rewrite(copied, target="orin@10.3")
    failed = recheck(copied).failed
    assert len(failed) == 8
    assert all("opset 22" in check.detail and "--opset 20" in check.detail for check in failed)


def test_verify_finds_another_opset_than_the_recorded_one(copied: Path) -> None:
    path = copied / EXPORT / FOLDER / "decode.onnx"
    model = onnx.load(path, load_external_data=False)
    model.opset_import[0].version = 21
    path.write_bytes(model.SerializeToString())
    rewrite(copied)
    failed = recheck(copied).failed
    assert [(check.name, check.detail) for check in failed] == [
        ("decode.onnx: valid ONNX, static", "it is in opset 21, and the export is in 22")
    ]


def test_verify_finds_an_engine_that_changed(copied: Path) -> None:
    engine = copied / EXPORT / "trt" / "engines" / "decode.engine"
    content = bytearray(engine.read_bytes())
    content[len(content) // 2] ^= 1
    engine.write_bytes(content)
    assert [check.name for check in recheck(copied).failed] == ["trt/engines/decode.engine: content"]


@pytest.mark.parametrize("damage", [lambda content: content[:1000], lambda content: b"engine??" + content[8:]])
def test_an_engine_that_is_none_is_told_from_a_missing_driver(
    result: ExportResult, damage: object, tmp_path: Path
) -> None:
    content = (result.directory / "trt" / "engines" / "embedding.engine").read_bytes()
    path = tmp_path / "damaged.engine"
    path.write_bytes(content)
    assert load("tensorrt_rtx", path)["loaded"] is not False
    path.write_bytes(damage(content))  # type: ignore[operator]
    said = load("tensorrt_rtx", path)
    assert said["loaded"] is False
    assert "Serialization" in said["load_errors"][0]


def test_a_graph_that_is_refused_leaves_no_engine(tmp_path: Path) -> None:
    text = "g (float[1,4] x, float[1,4] z) => (float[1,4] y) { y = Relu(x) }"
    model = parse_model(f'<ir_version: 10, opset_import: ["" : 18]> {text}')
    (tmp_path / "bad.onnx").write_bytes(model.SerializeToString())
    proof = prove_trt(tmp_path, {"bad.onnx": 0}, tmp_path / "trt", find_target("rtx"))
    assert proof.engines == ()
    assert [check.passed for check in proof.checks] == [False, False]
