"""The `hf` face: the stock processor writes as many image tokens as are left, and the graphs answer as torch does."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from exported import KEEP, make_artifact, make_export, reseal
from models import TOTAL
from transformers import AutoConfig, AutoProcessor
from typer.testing import CliRunner

from tokcarve.cli.main import app
from tokcarve.exporters.device.face import EXPORT, read_export
from tokcarve.exporters.export import ExportResult
from tokcarve.exporters.recheck import recheck
from tokcarve.passes.errors import CheckError, ExportError

ROOT = Path(__file__).resolve().parents[2]
GRAPHS = {"vision_encoder.onnx", "embed_tokens.onnx", "decoder_model_merged.onnx"}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """A random model with VTC-CLS, batch 2; do not write to it."""
    return make_export(make_artifact(tmp_path_factory.mktemp("hf")), faces=("hf",), batch=2)


@pytest.fixture
def copied(result: ExportResult, tmp_path: Path) -> Path:
    return Path(shutil.copytree(result.directory.parent, tmp_path / "copy"))


def test_graphs_and_files_have_the_names_that_runtimes_look_for(result: ExportResult) -> None:
    graphs = {f"onnx/{name}" for name in GRAPHS}
    files = {"config.json", "preprocessor_config.json", "processor_config.json", "tokenizer.json"}
    assert graphs | files | {"onnx/weights.data", "golden.npz"} <= {*result.record.files}
    assert set(result.record.open) == GRAPHS - {"vision_encoder.onnx"}
    ends = {}
    for name in GRAPHS:
        graph = onnx.load(result.directory / "onnx" / name, load_external_data=False).graph
        ends[name] = [one.name for one in graph.input][:3], graph.output[0].name
    assert ends["vision_encoder.onnx"] == (["pixel_values"], "image_features")
    assert ends["embed_tokens.onnx"] == (["input_ids"], "inputs_embeds")
    assert ends["decoder_model_merged.onnx"] == (["inputs_embeds", "attention_mask", "position_ids"], "logits")


def test_it_was_proven_and_holds_again(result: ExportResult) -> None:
    said = {"hf: kept indices", "hf: logits", "hf: greedy tokens", "hf: stock processor", "hf: stock image processor"}
    assert said <= {check.name for check in result.record.checks}
    report = recheck(result.directory.parent)
    assert not report.failed and said | {"power"} <= {check.name for check in report.checks}


def test_the_stock_processor_writes_what_is_left(result: ExportResult) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    counts = {}
    for place in (result.directory, result.directory.parent / "processor"):
        processor = AutoProcessor.from_pretrained(place, local_files_only=True)
        made = processor(images=picture, text="<image>\nwhat is this?", return_tensors="np")
        counts[place.name] = int((made["input_ids"] == result.record.geometry.image_token_id).sum())
    assert counts == {"export": KEEP, "processor": TOTAL}


def test_a_runtime_that_never_takes_one_off_counts_alike(result: ExportResult) -> None:
    """transformers.js adds the number to the patches whatever the strategy is."""
    settings = json.loads((result.directory / "processor_config.json").read_text())
    vision = result.record.geometry.vision
    assert (vision.image_size // vision.patch_size) ** 2 + settings["num_additional_image_tokens"] == KEEP
    assert settings["vision_feature_select_strategy"] == "full"
    config = AutoConfig.from_pretrained(result.directory, local_files_only=True)
    assert config.image_seq_length == KEEP
    template = (result.directory / "chat_template.jinja").read_text()
    assert json.loads((result.directory / "tokenizer_config.json").read_text())["chat_template"] == template


@pytest.mark.parametrize(
    ("name", "change", "failed"),
    [
        ("processor_config.json", {"num_additional_image_tokens": 0}, "hf: stock processor"),
        ("preprocessor_config.json", {"image_mean": [0.1, 0.2, 0.3]}, "hf: stock image processor"),
    ],
)
def test_a_processor_of_another_model_is_found(copied: Path, name: str, change: dict[str, object], failed: str) -> None:
    path = copied / EXPORT / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert [check.name for check in recheck(copied).failed] == [f"{name}: content"]
    reseal(copied)
    assert [check.name for check in recheck(copied).failed] == [failed]


def test_a_decoder_that_attends_to_less_is_found(copied: Path) -> None:
    path = copied / EXPORT / "onnx" / "decoder_model_merged.onnx"
    model = onnx.load(path, load_external_data=False)
    causal = next(node for node in model.graph.node if node.op_type in {"LessOrEqual", "GreaterOrEqual"})
    causal.op_type = "Less" if causal.op_type == "LessOrEqual" else "Greater"
    onnx.save(model, path)
    reseal(copied)
    assert "hf: logits" in {check.name for check in recheck(copied).failed}


def test_a_processor_that_cannot_count_stops_the_export(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path)
    (artifact / "processor" / "preprocessor_config.json").write_text(json.dumps({"image_processor_type": "Nothing"}))
    with pytest.raises(CheckError, match="hf: stock processor"):
        make_export(artifact, faces=("hf",))
    assert not (artifact / EXPORT).exists()


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("vtc_cls", {"positions": "original"}, "--positions renumbered"),
        ("vla_pruner", {}, "no state between images"),
        ("cdpruner", {}, "chooses by it before"),
    ],
)
def test_what_these_runtimes_have_no_place_for_is_refused(
    tmp_path: Path, method: str, settings: dict[str, object], words: str
) -> None:
    artifact = make_artifact(tmp_path, method, text_layers=4, **settings)
    with pytest.raises(ExportError, match=f"face hf: .*{words}"):
        make_export(artifact, faces=("ort", "hf"))
    assert not (artifact / EXPORT).exists()


def test_the_documented_python_answers_as_torch_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = make_artifact(tmp_path)
    make_export(artifact, faces=("hf",))
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "hf.md").read_text(), re.DOTALL)
    assert code is not None
    scene = ROOT / "docs" / "scene.png"
    written = code[1].replace("tiny-flowcut-k64/export", str(artifact / EXPORT)).replace("docs/scene.png", str(scene))
    exec(compile(written, "docs/hf.md", "exec"), {})
    printed = capsys.readouterr().out
    words = ("--runtime", "torch", "--image", scene, "--prompt", "what colour is the circle?", "--max-new", 8, "--json")
    done = CliRunner().invoke(app, ["run", str(artifact), *map(str, words)])
    assert done.exit_code == 0, done.stderr
    assert printed.strip() == json.loads(done.stdout)["answer"].strip() != ""


@pytest.mark.parametrize("method", ["pyramiddrop", "sparsevlm"])
def test_methods_in_the_language_model_are_carried(tmp_path: Path, method: str) -> None:
    artifact = make_artifact(tmp_path, method, text_layers=4)
    checks = {check.name: check for check in make_export(artifact, faces=("hf",)).record.checks}
    assert {"power", "hf: image features", "hf: logits", "hf: greedy tokens", "hf: stock processor"} <= {*checks}
    hidden = read_export(artifact).geometry.text.hidden
    ends = {}
    for name in GRAPHS:
        graph = onnx.load(artifact / EXPORT / "onnx" / name, load_external_data=False).graph
        ends[name] = [one.dim_value for one in graph.output[0].type.tensor_type.shape.dim]
    assert ends["vision_encoder.onnx"][-1] == ends["embed_tokens.onnx"][-1] > hidden
    with pytest.raises(ExportError, match="face hf: its runtimes pad .* use --batch 1"):
        make_export(artifact, faces=("hf",), batch=2, force=True)
