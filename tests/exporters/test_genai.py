"""The `genai` face: its graphs, and the stock onnxruntime-genai where it is installed, answer as torch does."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from exported import KEEP, make_artifact, make_export, reseal
from PIL import Image
from typer.testing import CliRunner

from tokcarve.cli.main import app
from tokcarve.exporters.device import photographs, stock_genai
from tokcarve.exporters.device.face import EXPORT, FOLDER
from tokcarve.exporters.device.growing import Growing
from tokcarve.exporters.eager import load
from tokcarve.exporters.export import ExportResult
from tokcarve.exporters.faces.genai import Genai
from tokcarve.exporters.recheck import recheck
from tokcarve.passes.errors import ExportError
from tokcarve.recipes.artifact import read_artifact

ROOT = Path(__file__).resolve().parents[2]
GRAPHS = {"genai.vision.onnx", "genai.embedding.onnx", "genai.text.onnx"}
OURS = {"genai: logits", "genai: greedy tokens", "genai: power"}
INSTALLED = stock_genai.version()
needs_runtime = pytest.mark.skipif(INSTALLED is None, reason="onnxruntime-genai is not installed (tokcarve[genai])")
# before the language model, with positions as they were; and in it too, by what vision hands over
CASES: dict[str, dict[str, Any]] = {"vtc_cls": {"positions": "original"}, "vflowopt": {"params": {"cell": 4.0}}}


def exported(directory: Path, method: str, **settings: Any) -> ExportResult:
    return make_export(make_artifact(directory, method, text_layers=4, words=True, **settings), faces=("genai",))


@pytest.fixture(scope="module")
def inside(tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """A random model with PyramidDrop in its language model; do not write to it."""
    return exported(tmp_path_factory.mktemp("inside"), "pyramiddrop")


@pytest.fixture(scope="module", params=["pyramiddrop", *CASES])
def result(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, inside: ExportResult) -> Any:
    """A random model, exported; do not write to it."""
    if request.param not in CASES:
        return inside
    return exported(tmp_path_factory.mktemp("genai"), request.param, **CASES[request.param])


@pytest.fixture
def copied(inside: ExportResult, tmp_path: Path) -> Path:
    return Path(shutil.copytree(inside.directory.parent, tmp_path / "copy"))


def failed(artifact: Path) -> set[str]:
    return {check.name.replace(f"onnxruntime-genai {INSTALLED}", "runtime") for check in recheck(artifact).failed}


def test_it_was_proven_and_holds_again(result: ExportResult) -> None:
    assert OURS <= {check.name for check in result.record.checks}
    assert set(result.record.open) == GRAPHS
    report = recheck(result.directory.parent)
    assert not report.failed and OURS <= {check.name for check in report.checks}


@needs_runtime
def test_the_stock_runtime_answered(result: ExportResult) -> None:
    said = {check.name for check in result.record.checks}
    assert {f"onnxruntime-genai {INSTALLED}: {what}" for what in ("prompt tokens", "logits", "greedy tokens")} <= said
    assert not any("was not tried" in text and "stock" in text for text in result.record.not_checked)


def test_where_it_is_not_installed_that_is_said(inside: ExportResult, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photographs, "version", lambda: None)
    report = recheck(inside.directory.parent)
    assert not report.failed and OURS <= {check.name for check in report.checks}
    assert not any(check.name.startswith("onnxruntime-genai") for check in report.checks)
    assert any("tokcarve[genai]" in text for text in report.not_checked)


def test_a_prompt_without_an_image_is_not_pruned(inside: ExportResult) -> None:
    """However long: longer than a prompt with the image is."""
    artifact = inside.directory.parent
    runs, plain = Growing(inside.directory / FOLDER), load(artifact).base.model.language_model
    head = load(artifact).graphs.parts.head
    for length in (5, 200):
        ids = np.random.default_rng(length).integers(3, 250, length).tolist()
        said = runs.answer(None, ids, 1)
        with torch.no_grad():
            expected = head(plain(input_ids=torch.tensor([ids])).last_hidden_state[0, -1])
        np.testing.assert_allclose(said.logits, expected.numpy(), atol=1e-4)


def test_another_picture_is_another_answer(inside: ExportResult) -> None:
    runs = Growing(inside.directory / FOLDER)
    first, second = (runs.see(Image.open(inside.directory / "genai" / f"{i}.png")) for i in (0, 1))
    assert first.shape == second.shape and np.abs(first - second).max() > 1e-2


@needs_runtime
@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"added_tokens": {"<|vision_end|>": 5}}, {"runtime: prompt tokens", "runtime: logits"}),
        ({"num_visual_tokens": KEEP}, {"runtime: runs"}),
    ],
)
def test_other_files_are_found(copied: Path, change: dict[str, Any], found: set[str]) -> None:
    name = "tokenizer.json" if "added_tokens" in change else "genai_config.json"
    path = copied / EXPORT / FOLDER / name
    fields = json.loads(path.read_text())
    if "added_tokens" in change:
        for one in fields["added_tokens"]:
            one["id"] = change["added_tokens"].get(one["content"], one["id"])
    else:
        fields["model"]["vision"] |= change
    path.write_text(json.dumps(fields))
    assert failed(copied) == {f"onnx/{name}: content"}
    reseal(copied)
    assert found <= failed(copied)


def test_a_prompt_that_is_not_pruned_is_found(copied: Path) -> None:
    path = copied / EXPORT / FOLDER / "genai.text.onnx"
    model = onnx.load(path, load_external_data=False)
    fork = next(node for node in model.graph.node if node.op_type == "If")
    branches = {attribute.name: attribute for attribute in fork.attribute}
    branches["then_branch"].g.CopyFrom(branches["else_branch"].g)
    for node in branches["then_branch"].g.node:  # names are given once
        for names in (node.input, node.output):
            names[:] = [name.replace(".else", ".again") for name in names]
    for value in branches["then_branch"].g.output:
        value.name = value.name.replace(".else", ".again")
    for value in branches["then_branch"].g.value_info:
        value.name = value.name.replace(".else", ".again")
    again = [one for one in model.graph.initializer if one.name.endswith(".else")]
    for one in again:
        made = model.graph.initializer.add()
        made.CopyFrom(one)
        made.name = one.name.replace(".else", ".again")
    onnx.save(model, path)
    reseal(copied)
    assert {"genai: logits", "genai: greedy tokens"} <= failed(copied)


def test_other_answers_are_found(copied: Path) -> None:
    path = copied / EXPORT / "genai" / "questions.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    arrays["tokens"] = arrays["plain.tokens"][:, ::-1]
    np.savez(path, **arrays)
    reseal(copied)
    assert "genai: greedy tokens" in failed(copied)


@pytest.mark.parametrize(
    ("method", "settings", "words"),
    [
        ("cdpruner", {}, "chooses by it before"),
        ("vla_pruner", {}, "keeps no state"),
        ("vtc_cls", {"batch": 2}, "--batch is 2"),
        ("vtc_cls", {"precision": "fp16"}, "fp32 alone"),
    ],
)
def test_what_the_runtime_has_no_place_for_is_refused(
    tmp_path: Path, method: str, settings: dict[str, Any], words: str
) -> None:
    artifact = make_artifact(tmp_path, method, text_layers=4, words=True)
    with pytest.raises(ExportError, match=f"face genai.*{words}"):
        make_export(artifact, faces=("genai",), **settings)
    assert not (artifact / EXPORT).exists()


def test_an_image_processor_that_pads_is_refused(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path, words=True)
    path = artifact / "processor" / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps({**settings, "image_processor_type": "LlavaImageProcessor", "do_pad": True}))
    with pytest.raises(ExportError, match="face genai: .*pads images"):
        make_export(artifact, faces=("genai",))


@needs_runtime
def test_a_tokenizer_that_the_runtime_reads_otherwise_is_refused(tmp_path: Path) -> None:
    artifact = make_artifact(tmp_path, words=False)
    with pytest.raises(ExportError, match="face genai: .* as other tokens"):
        make_export(artifact, faces=("genai",))
    assert not (artifact / EXPORT).exists()


@needs_runtime
def test_the_documented_python_answers_as_torch_does(
    inside: ExportResult, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs" / "genai.md").read_text(), re.DOTALL)
    assert code is not None
    scene, artifact = ROOT / "docs" / "scene.png", inside.directory.parent
    written = code[1].replace("tiny-flowcut-k64/export/onnx", str(inside.directory / FOLDER))
    ran = dict[str, Any]()
    exec(compile(written.replace("docs/scene.png", str(scene)), "docs/genai.md", "exec"), ran)
    assert capsys.readouterr().out
    words = ("--runtime", "torch", "--image", scene, "--prompt", "what colour is the circle?", "--max-new", 8, "--json")
    done = CliRunner().invoke(app, ["run", str(artifact), *map(str, words)])
    assert done.exit_code == 0, done.stderr
    # tokens, for the text of a random model holds bytes that end a string
    said = json.loads(done.stdout)["tokens"]
    assert [int(token) for token in ran["answer"]][: len(said)] == said and len(said) > 1


def test_its_name_is_the_option(inside: ExportResult) -> None:
    assert inside.record.faces == (Genai.name,)
    assert read_artifact(inside.directory.parent).manifest.method.name == "pyramiddrop"
