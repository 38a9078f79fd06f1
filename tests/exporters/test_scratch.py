"""Graphs of other shapes: they compute what exported ones do, write no weights, travel, and belong to the export."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from device_shell import on_a_device
from exported import KEEP

from tokcarve.exporters.device.face import EXPORT, FOLDER, WEIGHTS, read_export
from tokcarve.exporters.device.pipeline import Pipeline
from tokcarve.exporters.device.probe import probe
from tokcarve.exporters.device.scratch import SWEEP, batch_face, read_sweep, tokens_face
from tokcarve.exporters.device.session import Array, Face, open_face
from tokcarve.exporters.export import ExportResult
from tokcarve.exporters.recheck import recheck
from tokcarve.exporters.scratch import make_scratch
from tokcarve.passes.errors import ArtifactError, ExportError
from tokcarve.recipes.artifact import read_artifact


@pytest.fixture(scope="module")
def place(result: ExportResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the export (batch 2), with the language model over KEEP and 8 more tokens, and batch 1."""
    artifact = tmp_path_factory.mktemp("scratch") / "artifact"
    shutil.copytree(result.directory.parent, artifact)
    made = make_scratch(read_artifact(artifact), tokens=[KEEP, KEEP + 8], batches=[1, 2])
    assert made.tokens == (KEEP, KEEP + 8) and made.batches == (1,) and len(made.files) == 2 + 8
    return artifact


@pytest.fixture
def face(place: Path) -> Face:
    return open_face(place, threads=1)


def prefilled(pipeline: Pipeline, asked: tuple[Array, Array, Array]) -> dict[str, Array]:
    pixels, ids, lengths = asked
    return pipeline.prefill(pipeline.embed(ids, pipeline.vision(pixels, ids, lengths)), lengths)


def test_weights_are_read_where_they_are(place: Path, result: ExportResult) -> None:
    exported = (result.directory / FOLDER / WEIGHTS).stat().st_size
    assert (place / EXPORT / FOLDER / WEIGHTS).stat().st_size == exported
    graphs = sorted((place / EXPORT / SWEEP).glob("*.onnx"))
    assert len(graphs) == 10 and all(path.stat().st_size < exported / 2 for path in graphs)
    assert not [path for path in (place / EXPORT / SWEEP).iterdir() if path.suffix not in (".onnx", ".json")]


def test_the_whole_language_model_over_as_many_tokens_is_the_pruned_one(face: Face) -> None:
    pruned, other = Pipeline(face, baseline=False), Pipeline(tokens_face(face, KEEP), baseline=True)
    pixels, ids, lengths = probe(pruned)
    embedded = pruned.embed(ids, pruned.vision(pixels, ids, lengths))
    mine, theirs = (one.prefill(embedded, lengths)["logits"] for one in (pruned, other))
    np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-5)
    assert np.abs(mine).max() > 0.01
    wider = Pipeline(tokens_face(face, KEEP + 8), baseline=True)
    assert wider.graph("prefill").shapes["inputs_embeds"][1] == face.record.max_text + KEEP + 8


@pytest.mark.parametrize("baseline", [False, True])
def test_another_batch_gives_the_same_answers(face: Face, baseline: bool) -> None:
    two, one = Pipeline(face, baseline=baseline), Pipeline(batch_face(face, 1), baseline=baseline)
    pixels, ids, lengths = probe(two)
    assert len(pixels) == 2 and one.graph("vision").shapes["pixel_values"][0] == 1
    mine = prefilled(two, (pixels, ids, lengths))["logits"]
    for row in (0, 1):
        alone = prefilled(one, (pixels[row : row + 1], ids[row : row + 1], lengths[row : row + 1]))["logits"]
        np.testing.assert_allclose(alone[0], mine[row], rtol=0, atol=1e-4)
    assert np.abs(mine).max() > 1
    assert batch_face(face, 2) is face


def test_what_is_there_is_not_made_again(place: Path) -> None:
    before = (place / EXPORT / SWEEP).stat()
    make_scratch(read_artifact(place), tokens=[KEEP], batches=[1, 2])
    assert (place / EXPORT / SWEEP).stat() == before


def test_verify_knows_them_and_still_sees_strangers_and_changes(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place, tmp_path / "copy")
    folder = tmp_path / "copy" / EXPORT / SWEEP
    report = recheck(tmp_path / "copy")
    assert not report.failed and any(check.name.startswith("sweep/batch.1.") for check in report.checks)
    (folder / "extra.onnx").write_bytes(b"stranger")
    (folder / f"tokens.{KEEP}.baseline.prefill.onnx").write_bytes(b"changed")
    failed = {check.name for check in recheck(tmp_path / "copy").failed}
    assert failed == {"files that were not exported", f"sweep/tokens.{KEEP}.baseline.prefill.onnx: content"}
    (folder / "sweep.json").write_text("{}")
    assert {check.name for check in recheck(tmp_path / "copy").failed} == {"files that were not exported"}


def test_what_was_changed_or_is_of_another_export_is_refused(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place, tmp_path / "copy")
    folder, record = tmp_path / "copy" / EXPORT / SWEEP, read_export(place)
    graph = folder / "batch.1.vision.onnx"
    graph.write_bytes(graph.read_bytes() + b"0")
    with pytest.raises(ArtifactError, match=r"batch\.1\.vision\.onnx is not the file that was made; remove"):
        read_sweep(tmp_path / "copy", record)
    fields = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps({**fields, "export": "0" * 64}))
    with pytest.raises(ArtifactError, match="was made for another export"):
        read_sweep(tmp_path / "copy", record)
    (folder / "sweep.json").write_text("nothing")
    with pytest.raises(ArtifactError, match=r"sweep\.json cannot be read"):
        read_sweep(tmp_path / "copy", record)


@pytest.mark.parametrize(
    ("wish", "message"),
    [
        ({"tokens": [0]}, r"0 tokens cannot be swept: the model has 64; give 1\.\.64"),
        ({"tokens": [65]}, "65 tokens cannot be swept"),
        ({"batches": [0]}, "--batch 0 is too small"),
    ],
)
def test_counts_that_no_model_has_are_refused(place: Path, wish: dict[str, list[int]], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        make_scratch(read_artifact(place), **wish)


def test_weights_that_the_export_lacks_are_refused_and_nothing_is_left(place: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "copy"
    shutil.copytree(place, artifact)
    shutil.rmtree(artifact / EXPORT / SWEEP)
    embedding = artifact / EXPORT / FOLDER / "baseline.embedding.onnx"
    shutil.copy(embedding, artifact / EXPORT / FOLDER / "baseline.prefill.onnx")  # names none of prefill's weights
    with pytest.raises(ExportError, match=r"weight '.*' of the checkpoint is not in .*baseline\.prefill\.onnx"):
        make_scratch(read_artifact(artifact), tokens=[KEEP])
    assert not (artifact / EXPORT / SWEEP).exists() and not list((artifact / EXPORT).glob(".*"))


def test_a_device_uses_what_is_there_and_says_how_to_get_the_rest(place: Path, tmp_path: Path) -> None:
    quick = ("--repeats", 2, "--answers", 2, "--threads", 1)
    done = on_a_device("profile", place, *quick, "--sweep-tokens", f"{KEEP},{KEEP + 8}", "--batch", "1,2", "--json")
    assert done.returncode == 0, done.stderr
    fields = json.loads(done.stdout)
    assert [one["tokens"] for one in fields["sweep"]["points"]] == [KEEP, KEEP + 8] and fields["sweep"]["wish"] == KEEP
    assert [one["batch"] for one in fields["batches"]] == [1, 2]
    for one in fields["batches"]:
        images = 1000 * one["batch"] / one["end_to_end_ms"]["pruned"]
        assert one["images_per_second"]["pruned"] == pytest.approx(images)
        assert one["tokens_per_second"]["pruned"] == pytest.approx(2 * images)
    missing = on_a_device("profile", place, *quick, "--sweep-tokens", f"{KEEP + 16}")
    assert missing.returncode == 2 and not missing.stdout
    assert "is not here to make them; run the same command once where tokcarve[compress]" in missing.stderr


def test_faces_of_other_shapes_leave_the_face_alone(face: Face) -> None:
    before = replace(face)
    tokens_face(face, KEEP), batch_face(face, 1)
    assert face == before
