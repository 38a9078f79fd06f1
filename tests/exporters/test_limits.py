"""What is refused of an export for TensorRT before anything is read or traced."""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import pytest
from exported import make_artifact, make_export

from tokcarve.exporters import source
from tokcarve.exporters.device.boards import find_target
from tokcarve.exporters.engines import build_peak
from tokcarve.exporters.faces.kind import Request
from tokcarve.exporters.limits import memory_refused, topk_refused, trt_refused
from tokcarve.passes.errors import ExportError
from tokcarve.passes.flops import weight_parameters
from tokcarve.recipes.artifact import read_artifact
from tokcarve.recipes.compress import compress
from tokcarve.recipes.manifest import Manifest

TRT = Request(faces=("ort", "trt"), max_text=8, max_new=6)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("limits"))


@pytest.fixture
def manifest(artifact: Path) -> Manifest:
    return read_artifact(artifact).manifest


@pytest.fixture(autouse=True)
def nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("weights were read before the refusal")

    monkeypatch.setattr(source, "blank_model", read)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"opset": 17}, ("--opset 17", "18 to 23")),
        ({"opset": 24}, ("--opset 24", "18 to 23")),
        ({"opset": 21, "faces": ("trt",)}, ("--opset 21", "10.3", "--opset 20")),
        ({"opset": 21, "faces": ("trt",), "target": "orin"}, ("--opset 21", "10.3")),
        ({"target": "orin"}, ("--target orin", "--face ort", "--trt")),
        ({"target": "orin@jp6+11", "faces": ("trt",)}, ("JetPack 6 with TensorRT 11",)),
        ({"target": "l4", "faces": ("all",)}, ("no board 'l4'",)),
        ({"target": "orin", "faces": ("all",), "opset": 22}, ("--opset 22",)),
    ],
)
def test_refusals_come_before_any_weight(asked: dict[str, Any], words: tuple[str, ...], artifact: Path) -> None:
    with pytest.raises(ExportError) as error:
        make_export(artifact, **asked)
    assert all(word in str(error.value) for word in words), error.value
    assert not (artifact / "export").exists()


@pytest.mark.parametrize(
    "asked", [{"opset": 20}, {"opset": 23, "target": "thor"}, {"target": "orin@10.16", "opset": 23}]
)
def test_what_can_be_is_not_refused(asked: dict[str, Any], manifest: Manifest) -> None:
    assert trt_refused(manifest, replace(TRT, **asked)) is None


def test_precisions_of_the_target_are_asked_for(manifest: Manifest) -> None:
    assert "8.7" in str(trt_refused(manifest, replace(TRT, target="orin", precision="fp8")))
    assert trt_refused(manifest, replace(TRT, target="thor", precision="fp8")) is None


def test_engines_for_rtx_need_what_builds_them(manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'tokcarve[check]'" in str(trt_refused(manifest, replace(TRT, target="rtx")))
    assert trt_refused(manifest, replace(TRT, target="orin")) is None


def test_more_tokens_than_topk_takes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "SIDE", 128)
    monkeypatch.setattr(models, "PATCH", 2)
    models.write(models.build(vision_layers=4, text_layers=2, max_position_embeddings=8192), tmp_path / "base")
    with contextlib.chdir(tmp_path):
        compress(str(tmp_path / "base"), method="vtc_cls", tokens=3841, out="artifact")
        compress(str(tmp_path / "base"), method="vtc_cls", tokens=3840, out="fewer")
    with pytest.raises(ExportError) as error:
        make_export(tmp_path / "artifact", faces=("trt",))
    assert all(word in str(error.value) for word in ("chooses 3841 of 4096", "3840", "--face ort", "vision.layers.2"))
    assert topk_refused(read_artifact(tmp_path / "fewer").manifest) is None


def test_stages_of_every_budget_are_asked(manifest: Manifest) -> None:
    stage = manifest.schedule[0].model_copy(update={"keep": 4000, "total": 5000})
    assert topk_refused(manifest) is None
    assert "4000 of 5000" in str(topk_refused(manifest.model_copy(update={"schedule": (stage,)})))
    merging = stage.model_copy(update={"how": "merge"})
    assert topk_refused(manifest.model_copy(update={"schedule": (merging,)})) is None


@pytest.fixture
def grown(manifest: Manifest) -> Callable[..., Manifest]:
    """The manifest of a model with a larger language model or more stored rows."""

    def grow(layers: int = 2, rows: int = 1) -> Manifest:
        text = replace(manifest.geometry.text, hidden=4096, heads=32, kv_heads=32, head_dim=128, mlp=11008)
        text = replace(text, layers=layers, vocab=32064)
        geometry = replace(manifest.geometry, text=text)
        return manifest.model_copy(update={"geometry": geometry, "kv_rows": (rows,) * layers})

    return grow


def test_a_model_that_a_board_cannot_build_is_refused_with_numbers(grown: Callable[..., Manifest]) -> None:
    llava = grown(layers=32)
    count = weight_parameters(llava.geometry)
    peak = build_peak(4 * (count["language"] + count["head"]))
    refusal = memory_refused(find_target("orin"), llava, TRT, 4.0)
    assert refusal is not None
    assert f"about {peak:.1f} GiB" in refusal
    assert "at most 64 GiB" in refusal
    assert memory_refused(find_target("thor"), llava, TRT, 4.0) is None
    assert memory_refused(find_target("orin"), llava, TRT, 2.0) is None
    assert memory_refused(find_target("orin-nano"), llava, TRT, 2.0) is not None
    assert memory_refused(find_target("rtx"), llava, TRT, 4.0) is None


def test_caches_count_too(grown: Callable[..., Manifest]) -> None:
    refusal = memory_refused(find_target("orin-nano"), grown(rows=576), replace(TRT, batch=4096), 2.0)
    assert refusal is not None
    assert "caches of 4096 prompts" in refusal
