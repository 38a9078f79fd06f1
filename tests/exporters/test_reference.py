"""`--reference-weights`: graphs that read the checkpoint's own files."""

import errno
import os
from pathlib import Path

import pytest
import torch
from exported import make_artifact, make_export
from models import build, write

from tokcarve.exporters import weights
from tokcarve.exporters.device.face import EXPORT, FOLDER
from tokcarve.exporters.export import ExportResult
from tokcarve.exporters.recheck import recheck
from tokcarve.passes.errors import ExportError
from tokcarve.recipes.compress import compress


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="module")
def result(artifact: Path) -> ExportResult:
    return make_export(artifact, reference_weights=True)


def test_the_weights_are_the_checkpoints_file(result: ExportResult, artifact: Path) -> None:
    base = artifact.parent / "base" / "model.safetensors"
    assert os.path.samefile(artifact / EXPORT / FOLDER / "model.safetensors", base)
    assert f"{FOLDER}/model.safetensors" in result.record.files
    small = sum(tensor.bytes for tensor in result.record.tensors.values())
    assert small <= result.weight_bytes < 0.5 * base.stat().st_size, "large weights are not written again"


def test_it_is_proven_as_any_export(result: ExportResult, artifact: Path) -> None:
    names = {check.name for check in result.record.checks}
    assert {"weights", "power", "pruned: greedy tokens", "unpruned: logits"} <= names
    assert not recheck(artifact).failed


def test_a_checkpoint_that_changed_is_found(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path)
    make_export(artifact, reference_weights=True)
    shard = tmp_path / "base" / "model.safetensors"
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 0x40
    shard.write_bytes(raw)
    assert "onnx/model.safetensors: content" in {check.name for check in recheck(artifact).failed}


@pytest.mark.parametrize(("dtype", "precision"), [(torch.float16, "fp16"), (torch.bfloat16, "bf16")])
def test_the_precision_of_the_checkpoint_is_what_can_stay_in_it(
    tmp_path: Path, dtype: torch.dtype, precision: str
) -> None:
    write(build("qwen2", "clip", dtype=dtype, vision_layers=4, text_layers=2), tmp_path / "base")
    compress(str(tmp_path / "base"), method="vtc_cls", tokens=16, out=tmp_path / "artifact")
    made = make_export(tmp_path / "artifact", reference_weights=True, precision=precision)
    base = tmp_path / "base" / "model.safetensors"
    assert os.path.samefile(made.directory / FOLDER / "model.safetensors", base)
    assert made.weight_bytes < 0.5 * base.stat().st_size
    assert {"weights", "weights.data: size", "pruned: logits"} <= {check.name for check in made.record.checks}
    assert not recheck(tmp_path / "artifact").failed


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantised_weights_cannot_stay(artifact: Path, result: ExportResult, precision: str) -> None:
    with pytest.raises(ExportError, match=f"--precision {precision} quantises them; leave one of the two out"):
        make_export(artifact, reference_weights=True, precision=precision, force=True)
    assert not recheck(artifact).failed, "the old export is as it was"


def test_weights_of_another_kind_are_refused(tmp_path: Path) -> None:
    write(build("qwen2", "clip", dtype=torch.float16, vision_layers=4, text_layers=2), tmp_path / "base")
    compress(str(tmp_path / "base"), method="vtc_cls", tokens=16, out=tmp_path / "artifact")
    with pytest.raises(ExportError, match=r"checkpoint \(float16\) is what the export reads \(float32\)"):
        make_export(tmp_path / "artifact", reference_weights=True)
    assert not (tmp_path / "artifact" / EXPORT).exists()


def test_another_disk_is_refused(artifact: Path, result: ExportResult, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: object, target: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(weights.os, "link", refuse)
    with pytest.raises(ExportError, match="put artifact and checkpoint on one disk"):
        make_export(artifact, reference_weights=True, force=True)
    assert not recheck(artifact).failed, "the old export is as it was"
