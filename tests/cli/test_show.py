"""`tokcarve show`: a toy export without torch, methods on a small model in torch, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from device_shell import on_a_device
from exported import make_artifact
from PIL import Image
from refusals import refused
from toy_face import write_toy
from typer.testing import CliRunner, Result

from tokcarve.cli.main import app

KEYS = ["format", "verb", "out", "image", "size", "seen", "grid", "prompt", "columns", "overlap"]
COLUMN = ["name", "method", "runtime", "source", "tokens", "total", "answer", "stages", "notes"]


def show(*words: object) -> Result:
    return CliRunner().invoke(app, ["show", *map(str, words)])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy export, an artifact with its base, and a picture."""
    folder = tmp_path_factory.mktemp("show")
    write_toy(folder / "toy")
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((140, 100)).save(folder / "a.png")
    make_artifact(folder, "fastv", text_layers=4)
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def test_an_export_is_shown_without_torch(place: Path) -> None:
    words = ["show", place / "a.png", "--artifact", place / "toy", "--prompt", "why?", "--max-new", 3]
    done = on_a_device(*words, "-o", "a.png", "--json")
    assert done.returncode == 0, done.stderr
    fields = json.loads(done.stdout)
    assert list(fields) == KEYS and list(fields["columns"][0]) == COLUMN
    assert fields["size"] == [140, 100] and fields["grid"] == [4, 4]
    left, top, right, bottom = fields["seen"]
    assert (top, bottom) == (0, 100) and abs(left + right - 140) < 5 and 95 < right - left < 105
    ran = on_a_device("run", place / "toy", "--image", place / "a.png", "--prompt", "why?", "--max-new", 3, "--json")
    answered = json.loads(ran.stdout)
    (column,) = fields["columns"]
    assert column["stages"][-1]["kept"] == answered["kept_indices"] and column["answer"] == answered["answer"].strip()
    assert column["stages"][-1]["scores"] is None and "no scores" in column["notes"][0]
    with Image.open("a.png") as made:
        assert made.format == "PNG"
    assert on_a_device(*words, "-o", "a.html").returncode == 0 and "<!doctype html>" in Path("a.html").read_text()


def test_methods_in_torch_beside_an_artifact(place: Path) -> None:
    base = place / "base"
    words = ["--methods", "vtc_cls,tome", "--model", base, "--tokens", 16, "--artifact", place / "artifact"]
    done = show(place / "a.png", *words, "--runtime", "torch", "--prompt", "why?", "-o", "a.html", "--json")
    assert done.exit_code == 0, done.stderr
    fields = json.loads(done.stdout)
    assert [column["name"] for column in fields["columns"]] == ["fastv", "vtc_cls", "tome"]
    for column in fields["columns"]:
        assert len(column["stages"][-1]["kept"]) == 16 and column["answer"] is not None
    assert fields["columns"][0]["stages"][-1]["site"].startswith("language.")
    assert len(fields["columns"][1]["stages"][0]["scores"]) == 64
    assert sum(map(len, fields["columns"][2]["stages"][-1]["stands_for"])) == 64
    assert Path("a.html").read_text().count('class="panel"') == 3 + len(fields["columns"][2]["stages"]) + 1


def test_people_get_tables(place: Path) -> None:
    done = show(place / "a.png", "--methods", "vtc_cls,uniform", "--model", place / "base", "--tokens", 8)
    assert done.exit_code == 0
    for words in ("vtc_cls, 8 of 64 (torch)", "vision.layers.2", "overlap of what is left"):
        assert words in done.stdout
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["missing.png"], "missing.png does not exist"),
        (["text"], "is not an image that can be read"),
        (["a.png", "-o", "x.svg"], "-o x.svg is no .png or .html file"),
        (["a.png", "-o", "nowhere/x.png"], "nowhere is no directory"),
        (["a.png", "-o", "toy.png"], "is a directory"),
        (["a.png", "--methods", ","], "names no method"),
        (["a.png", "--methods", "vtc_cls,vtc_cls"], "names vtc_cls twice"),
        (["a.png", "--methods", "vtc_class"], "unknown method 'vtc_class', did you mean 'vtc_cls'"),
        (["a.png", "--methods", "auto"], "auto"),
        (["a.png", "--methods", "covipal"], "--samples scenes, and show that with --artifact"),
        (["a.png", "--methods", "vla_pruner"], "chooses by a state"),
        (["a.png", "--methods", "vtc_cls", "--tokens", "65"], "tokens=65 does not fit the 64 visual tokens"),
        (["a.png", "--methods", "vtc_cls", "--tokens", "0"], "tokens=0"),
        (["a.png", "--methods", "vtc_cls", "--model", "lava"], "unknown model 'lava'"),
        (["a.png", "--artifact", "toy", "--tokens", "4"], "an artifact has its own count"),
        (["a.png", "--artifact", "toy", "--artifact", "toy"], "shown twice"),
        (["a.png", "--artifact", "toy", "--methods", "vtc_cls"], "so their patches cannot be compared"),
        (["a.png", "--artifact", "nothing"], "nothing does not exist"),
        (["a.png"], "no artifact was named"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(place: Path, words: list[str], message: str) -> None:
    Path("a.png").write_bytes((place / "a.png").read_bytes())
    Path("text").write_text("no image")
    Path("toy").symlink_to(place / "toy")
    Path("toy.png").mkdir()
    if "--methods" in words and "--model" not in words:
        words = [*words, "--model", str(place / "base")]
    assert message in refused("show", *words)


def test_torch_without_torch_names_the_extra(place: Path) -> None:
    done = on_a_device("show", place / "a.png", "--methods", "vtc_cls")
    assert done.returncode == 2 and "pip install 'tokcarve[compress]'" in done.stderr
