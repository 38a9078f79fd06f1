"""What the verbs print: their JSON is a promise, their tables are for people."""

import json
from pathlib import Path

import models
import pytest
from spoken import documented, said, told
from transformers.utils.logging import disable_progress_bar

from tokcarve import __version__
from tokcarve.passes.methods import METHODS

VERBS = (
    "compress",
    "export",
    "verify",
    "run",
    "profile",
    "inspect",
    "methods",
    "plan",
    "recipes",
    "compare",
    "doctor",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    disable_progress_bar()
    return models.write(models.build(), tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_json_documented(verb: str) -> None:
    assert len(documented(verb)) > 0
    assert "--json" in said(verb, "--help")


def test_version() -> None:
    assert said("--version") == f"tokcarve {__version__}\n"


def test_compress_writes_remembers_and_inspect_reads(checkpoint: Path, here: Path) -> None:
    made = told("compress", checkpoint, "--method", "flowcut", "--keep", "0.25")
    assert made["written"] is True
    assert made["artifact"] == str(here / "small-flowcut-k16")
    assert made["manifest"] == json.loads((here / "small-flowcut-k16" / "tokcarve.json").read_text())
    seen = told("inspect")
    assert seen["manifest"] == made["manifest"]
    before, after = seen["graphs"]["vision"]["before"], seen["graphs"]["vision"]["after"]
    assert set(after[0]) == {"name", "part", "kind", "shape"}
    assert {row["part"] for row in before} == {"input", "model"}
    assert {row["part"] for row in after} == {"input", "model", "select"}
    assert before[-1]["shape"] == ["B", 64, 48] and after[-1]["shape"] == ["B", 16, 48]


def test_a_dry_run_writes_nothing(checkpoint: Path, here: Path) -> None:
    made = told("compress", checkpoint, "--method", "vtc_cls", "--tokens", "16", "--dry-run")
    assert made["written"] is False
    assert made["manifest"]["schedule"] == [
        {"site": "vision.layers.4", "total": 64, "keep": 16, "how": "choose"} | dict.fromkeys(("positions", "neurons"))
    ]
    assert list(here.iterdir()) == []


def test_flags_and_their_recipe_make_the_same_artifact(checkpoint: Path, here: Path) -> None:
    first = told("compress", checkpoint, "--method", "random", "--tokens", "16", "--seed", "3", "-o", "one")
    again = told("compress", "--recipe", "one/recipe.yaml", "-o", "two")
    assert first["manifest"] == again["manifest"]
    assert (here / "one" / "tokcarve.json").read_bytes() == (here / "two" / "tokcarve.json").read_bytes()
    assert first["manifest"]["method"]["params"] == {"seed": 3}


def test_calibration_is_recorded_and_repeatable(checkpoint: Path, here: Path) -> None:
    words = ("compress", checkpoint, "--method", "flowcut", "--tokens", "16", "--samples", "scenes", "--count", "8")
    first, again = told(*words, "-o", "one"), told(*words, "-o", "two")
    assert first["manifest"] == again["manifest"]
    assert first["manifest"]["calibration"]["count"] == 8


def test_tables_show_the_three_numbers(checkpoint: Path) -> None:
    text = said("compress", checkpoint, "--method", "vtc_cls", "--tokens", "16")
    for words in (
        "16 of 64",
        "entering the language model",
        "mean over its layers",
        "MiB in fp16",
        "next: tokcarve exp",
    ):
        assert words in text
    text = said("inspect")
    assert "select_choose_l4" in text and "visual rows per layer 16 (3 layers)" in text


def test_methods_lists_all() -> None:
    found = {row["name"]: row for row in told("methods")["methods"]}
    assert list(found) == list(METHODS)
    assert found["flowcut"]["parameters"]["form"] == "static"
    assert found["vtc_cls"]["source"].startswith("arXiv:")
    assert all(name in said("methods") for name in METHODS)
