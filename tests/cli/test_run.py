"""`tokcarve run`: on a toy artifact without torch, and on a real export against torch."""

import json
from pathlib import Path

import numpy as np
import pytest
from device_shell import on_a_device
from models import build, write
from PIL import Image
from toy_face import edit_record, write_toy
from typer.testing import CliRunner, Result

import tokcarve
from tokcarve.cli.main import app
from tokcarve.cli.run import _ranges
from tokcarve.exporters.export import export_artifact
from tokcarve.exporters.faces.kind import Request


def picture(path: Path, seed: int = 0) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((140, 100)).save(path)
    return path


def ask(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["run", *map(str, arguments)])


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "toy"
    write_toy(directory)
    picture(directory.parent / "a.png")
    return directory


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    checkpoint = write(build(), folder / "checkpoint")
    tokcarve.compress(str(checkpoint), method="vtc_cls", tokens=16, out=str(folder / "artifact"))
    export_artifact(folder / "artifact", Request(max_text=48, max_new=10))
    return folder / "artifact"


def test_json_has_the_documented_shape(toy: Path) -> None:
    done = ask(toy, "--image", toy.parent / "a.png", "--prompt", "what is it?", "--max-new", 5, "--json")
    assert done.exit_code == 0
    fields = json.loads(done.stdout)
    assert list(fields) == [
        "format", "verb", "artifact", "runtime", "image", "prompt", "provider", "answer", "tokens", "kept_indices",
        "timings_ms", "total",
    ]  # fmt: skip
    assert fields["verb"] == "run" and fields["runtime"] == "ort" and fields["total"] == 16
    assert len(fields["tokens"]) == 5 and fields["kept_indices"] == sorted(fields["kept_indices"])
    assert set(fields["timings_ms"]) == {"preprocess", "vision", "embedding", "prefill", "first_token", "decode"}


def test_people_get_the_answer_the_patches_and_the_times(toy: Path) -> None:
    done = ask(toy, "--image", toy.parent / "a.png", "--prompt", "what is it?", "--max-new", 5)
    assert done.exit_code == 0
    for words in ("what is it?", "4 of 16, patches", "first token", "4, ", "CPU (ort)"):
        assert words in done.stdout


def test_the_last_artifact_is_used_without_one(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(toy.parent)
    Path(".tokcarve").mkdir(exist_ok=True)
    Path(".tokcarve/last").write_text("toy\n")
    assert ask("--image", "a.png", "--prompt", "why?", "--max-new", 2).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "missing.png", "--prompt", "why?"], "missing.png does not exist"),
        (["--image", "a.png", "--prompt", "why <image>?"], "contains <image>; leave it out"),
        (["--image", "a.png", "--prompt", "why " * 40], "--max-text"),
        (["--image", "a.png", "--prompt", "why?", "--max-new", "13"], r"ask for 1..12"),
        (["--image", "a.png", "--prompt", "why?", "--threads", "0"], "threads=0"),
        (["--image", "a.png", "--prompt", "why?", "--runtime", "trt"], "trt"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    toy: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(toy.parent)
    done = ask("toy", *arguments)
    assert done.exit_code == 2 and message in done.stderr and not done.stdout


def test_an_export_of_another_compression_is_refused(tmp_path: Path) -> None:
    write_toy(tmp_path / "a")
    write_toy(tmp_path / "b", tokens=5)
    (tmp_path / "a" / "export").rename(tmp_path / "old")
    (tmp_path / "b" / "export").rename(tmp_path / "a" / "export")
    done = ask(tmp_path / "a", "--image", picture(tmp_path / "a.png"), "--prompt", "why?")
    assert done.exit_code == 2 and "was exported from another compression" in done.stderr


def test_an_artifact_without_an_export_says_what_to_do(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy")
    (tmp_path / "toy" / "export" / "export.json").unlink()
    done = ask(tmp_path / "toy", "--image", picture(tmp_path / "a.png"), "--prompt", "why?")
    assert done.exit_code == 2 and "write it with `tokcarve export" in done.stderr


def test_an_edited_export_is_refused(tmp_path: Path) -> None:
    write_toy(tmp_path)
    edit_record(tmp_path, batch=7)
    done = ask(tmp_path, "--image", picture(tmp_path / "a.png"), "--prompt", "why?")
    assert done.exit_code == 2 and "does not match its digest" in done.stderr


def test_it_runs_without_torch_transformers_and_onnx(toy: Path) -> None:
    done = on_a_device("run", toy, "--image", toy.parent / "a.png", "--prompt", "why?", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tokens"]


def test_torch_without_torch_names_the_extra(toy: Path) -> None:
    done = on_a_device("run", toy, "--image", toy.parent / "a.png", "--prompt", "why?", "--runtime", "torch")
    assert done.returncode == 2 and "pip install 'tokcarve[compress]'" in done.stderr


@pytest.mark.parametrize("question", ["what is it?", "how many squares are there? yes or no"])
def test_exported_graphs_answer_as_torch_does(exported: Path, tmp_path: Path, question: str) -> None:
    image = picture(tmp_path / "a.png", seed=len(question))
    both = [
        json.loads(
            ask(exported, "--image", image, "--prompt", question, "--max-new", 10, "--runtime", way, "--json").stdout
        )
        for way in ("ort", "torch")
    ]
    for key in ("answer", "tokens", "kept_indices", "total"):
        assert both[0][key] == both[1][key]
    assert len(both[0]["kept_indices"]) == 16 and both[0]["total"] == 64
    assert len(both[1]["timings_ms"]["decode"]) == len(both[1]["tokens"]) - 1


def test_both_runtimes_are_scored_alike_and_controls_stand_beside(exported: Path, tmp_path: Path) -> None:
    rows = [{"image": "a.png", "question": "is there a cat?", "answer": "no"}, {"image": "b.png"}]
    rows[1] |= {"question": "where is it?", "answer": "left"}
    for seed, row in enumerate(rows):
        picture(tmp_path / row["image"], seed)
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = []
    for way, controls in (("ort", "--controls"), ("torch", "--no-controls")):
        given = ["eval", exported, "--data", tmp_path / "q.jsonl", "--no-gate", "--max-new", 3, "--runtime", way]
        done = CliRunner().invoke(app, [*map(str, given), controls, "-o", str(tmp_path / way), "--json"])
        assert done.exit_code == 0, done.stderr
        made.append(json.loads(done.stdout)["sides"])
    ort, torch = made
    assert list(ort) == ["unpruned", "pruned", "random", "uniform"] and list(torch) == ["unpruned", "pruned"]
    assert [one["runtime"] for one in ort.values()] == ["ort", "ort", "torch", "torch"]
    for name, other in torch.items():
        nats = ("kl", "kl_first")
        assert [ort[name][key] for key in nats] == pytest.approx([other[key] for key in nats], abs=1e-4)
        ran = {"runtime": "torch", "provider": "torch cpu"}
        assert {**ort[name], **other} == {**ort[name], **ran} | {key: other[key] for key in nats}
    assert ort["pruned"]["kl"] > 0 and ort["random"]["runs"] == 3
    assert all(0 < ort[name]["kl"] != ort["pruned"]["kl"] for name in ("random", "uniform"))


def test_torch_refuses_what_makes_no_answer(exported: Path, tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png")
    done = ask(exported, "--image", image, "--prompt", "why?", "--runtime", "torch", "--max-new", 0)
    assert done.exit_code == 2 and "max_new=0 asks for no answer" in done.stderr


def test_the_cls_row_is_named_and_merged_tokens_stand_in_order() -> None:
    assert _ranges([-1, 0, 1, 2, 7]) == "[CLS], 0-2, 7"
    assert _ranges([7, 2, 1]) == "1-2, 7"
