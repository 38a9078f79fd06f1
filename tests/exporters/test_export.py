"""An artifact into its `ort` face: whole, recorded, or not at all."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from exported import KEEP, MAX_NEW, MAX_TEXT, make_artifact, make_export
from models import SIDE, TOTAL

from tokcarve.exporters import export as exporting
from tokcarve.exporters import prove as proving
from tokcarve.exporters import source
from tokcarve.exporters.device.compare import Check
from tokcarve.exporters.device.face import EXPORT, FaceFile, check_files, read_export
from tokcarve.exporters.device.session import Face
from tokcarve.exporters.export import ExportResult
from tokcarve.exporters.faces.kind import FaceKind, Proof, Request, Work
from tokcarve.exporters.faces.static import Ort
from tokcarve.exporters.modules import FaceGraph
from tokcarve.exporters.recheck import recheck
from tokcarve.exporters.source import Source
from tokcarve.exporters.writing import Written
from tokcarve.passes.errors import ArtifactError, CheckError, ExportError
from tokcarve.recipes.artifact import Artifact, read_artifact

GRAPHS = ("vision", "embedding", "prefill", "decode")


@pytest.fixture
def artifact(result: ExportResult, tmp_path: Path) -> Path:
    """A copy of the exported artifact."""
    copied = shutil.copytree(result.directory.parent, tmp_path / "artifact")
    return Path(copied)


def test_every_file_is_there_and_in_the_record(result: ExportResult) -> None:
    graphs = {f"{prefix}{name}.onnx" for prefix in ("", "baseline.") for name in GRAPHS}
    assert set(result.record.files) == {*(f"onnx/{name}" for name in (*graphs, "weights.data")), "golden.npz"}
    there = {path.relative_to(result.directory).as_posix() for path in result.directory.rglob("*") if path.is_file()}
    assert there == {*result.record.files, "export.json"}
    check_files(result.directory.parent, read_export(result.directory.parent))


def test_the_record_says_what_was_exported(result: ExportResult) -> None:
    record = read_export(result.directory.parent)
    assert record == result.record.model_copy(update={"digest": record.digest})
    assert (record.batch, record.max_text, record.max_new, record.opset) == (2, MAX_TEXT, MAX_NEW, 18)
    assert (record.pruned.tokens, record.baseline.tokens, record.total) == (KEEP, TOTAL, TOTAL)
    assert record.positions == "original"
    assert record.artifact == read_artifact(result.directory.parent).manifest.digest


def test_checks_were_made_and_gaps_are_named(result: ExportResult) -> None:
    names = {check.name for check in result.record.checks}
    assert {"weights", "power", "pruned: kept indices", "unpruned: greedy tokens"} <= names
    assert all(check.passed for check in result.record.checks)
    assert any("no GPU provider" in text for text in result.record.not_checked)
    assert any("TensorRT" in text for text in result.record.not_checked)


def test_weights_are_stored_once_for_eight_graphs(result: ExportResult) -> None:
    read = sum(graph.weight_bytes for graph in result.graphs)
    assert result.weight_bytes < 0.6 * read
    assert all(graph.graph_bytes < 2**18 for graph in result.graphs)


def test_only_the_pruned_vision_graph_selects(result: ExportResult) -> None:
    assert {graph.name for graph in result.graphs if graph.selection_nodes} == {"vision.onnx"}


def test_the_size_of_the_weight_file_was_known_before(result: ExportResult) -> None:
    check = next(check for check in result.record.checks if check.name == "weights.data: size")
    assert check.detail == f"{result.weight_bytes} bytes, as predicted from the checkpoint's headers"


def test_what_pruning_does_to_answers_is_measured(result: ExportResult) -> None:
    quality = result.record.quality
    assert quality is not None and [row.graphs for row in quality.rows] == ["fp32", "fp32, pruned"]
    whole, pruned = quality.rows
    assert (whole.agreement, whole.kl) == (1.0, 0.0)
    assert pruned.kl > 0.01 and 0 <= pruned.agreement < 1


def test_golden_samples_can_be_read_back(result: ExportResult) -> None:
    golden = np.load(result.directory / "golden.npz")
    count = len(golden["pixel_values"])
    assert golden["pixel_values"].shape == (count, 3, SIDE, SIDE)
    assert golden["kept_indices"].shape == (count, KEEP)
    assert golden["tokens"].shape == (count, MAX_NEW)
    image = result.record.geometry.image_token_id
    assert ((golden["input_ids"] == image).sum(axis=1) == TOTAL).all()
    assert (np.diff(golden["kept_indices"], axis=1) > 0).all()


def test_vision_says_where_its_rows_are(result: ExportResult) -> None:
    artifact = result.directory.parent
    face = Face(artifact=artifact, record=read_export(artifact))
    pixels = np.load(result.directory / "golden.npz")["pixel_values"][:2]
    pruned, whole = (face.open("vision", baseline=one).run({"pixel_values": pixels}) for one in (False, True))
    assert np.array_equal(pruned["visual_position_ids"], pruned["kept_indices"])
    assert np.array_equal(whole["visual_position_ids"], np.tile(np.arange(TOTAL), (2, 1)))
    assert {"pruned: positions", "unpruned: positions"} <= {check.name for check in result.record.checks}


class Unable(FaceKind):
    """A face that carries nothing."""

    name = "unable"

    def refuses(self, artifact: Artifact, request: Request) -> str | None:
        return "face unable carries nothing; choose ort"

    def pieces(self, source: Source) -> Iterator[tuple[str, FaceGraph]]:
        raise AssertionError("it was refused")

    def prove(self, work: Work) -> Proof:
        raise AssertionError("it was refused")


def test_all_writes_the_faces_that_can_and_says_why_others_cannot(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "FACES", {"ort": Ort(), "unable": Unable()})
    with pytest.raises(ExportError, match="carries nothing"):
        make_export(artifact, force=True, faces=("unable", "all"))
    made = make_export(artifact, force=True, faces=("all",))
    assert made.record.faces == ("ort",)
    assert read_export(artifact).refused == {"unable": "face unable carries nothing; choose ort"}
    with pytest.raises(ExportError, match="no face 'other'; give one or more of ort, unable, or all"):
        make_export(artifact, force=True, faces=("other",))
    with pytest.raises(ExportError, match=r"no face 'edgellm' \(TensorRT Edge-LLM .* face trt .*\); give one"):
        make_export(artifact, force=True, faces=("ort", "edgellm"))


def test_an_existing_export_is_left_alone(artifact: Path) -> None:
    before = (artifact / EXPORT / "export.json").read_bytes()
    with pytest.raises(ExportError, match="--force"):
        make_export(artifact)
    assert (artifact / EXPORT / "export.json").read_bytes() == before


def test_a_check_that_fails_leaves_the_old_export(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in (artifact / EXPORT).rglob("*")}
    bad = Check(name="weights", passed=False, detail="they differ")
    nothing = Written(graphs=(), tensors={}, weights=FaceFile(bytes=0, sha256=""), predicted=0)

    def write_nothing(source: object, request: object, pieces: object, folder: Path, tell: object) -> Written:
        (folder / "weights.data").touch()
        return nothing

    monkeypatch.setattr(exporting, "write_graphs", write_nothing)
    monkeypatch.setattr(proving.verify, "check_weights", lambda *args: bad)
    with pytest.raises(CheckError, match="they differ"):
        make_export(artifact, force=True)
    assert {path: path.stat().st_mtime_ns for path in (artifact / EXPORT).rglob("*")} == before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch": 0}, "--batch 0"),
        ({"max_text": 3}, "--max-text 3"),
        ({"max_new": 0}, "--max-new 0"),
        ({"max_text": 400, "max_new": 100}, "the model has 512"),
    ],
)
def test_sizes_that_cannot_be_are_refused(artifact: Path, settings: dict[str, int], words: str) -> None:
    with pytest.raises(ExportError, match=words):
        make_export(artifact, force=True, **settings)


def test_a_disk_without_room_is_refused_before_writing(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(artifact / "export")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))  # type: ignore[attr-defined]
    with pytest.raises(ExportError, match="GiB are free"):
        make_export(artifact)
    assert not (artifact / EXPORT).exists()


def test_a_model_that_does_not_fit_into_memory_is_exported_and_says_so(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, result: ExportResult
) -> None:
    shutil.rmtree(artifact / "export")
    monkeypatch.setattr(source.psutil, "virtual_memory", lambda: SimpleNamespace(available=2**10))
    made = make_export(artifact, batch=2)
    left = [text for text in made.record.not_checked if "no number was compared with the model in torch" in text]
    assert len(left) == 1 and "GiB of memory are needed to run it twice, and 0.0 GiB are free" in left[0]
    assert "golden.npz" not in made.record.files and "weights" in {check.name for check in made.record.checks}
    graphs = [name for name in made.record.files if name != "golden.npz"]
    assert {name: made.record.files[name] for name in graphs} == {name: result.record.files[name] for name in graphs}
    again = recheck(artifact)
    assert not again.failed and any("no golden samples" in text for text in again.not_checked)


def test_changed_base_weights_are_refused(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path)
    weights = tmp_path / "base" / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    with pytest.raises(ArtifactError, match="changed"):
        make_export(artifact)


def test_the_record_is_plain_json(result: ExportResult) -> None:
    fields = json.loads((result.directory / "export.json").read_text())
    assert fields["format"] == 1
    assert str(result.directory) not in json.dumps(fields), "an export may be moved"
