"""`tokcarve eval`: its contract and what it refuses; that both runtimes score alike is in test_run.py."""

import json
from pathlib import Path

import numpy as np
import pytest
from device_shell import on_a_device
from PIL import Image
from toy_face import write_toy
from typer.testing import CliRunner, Result

from tokcarve.cli.main import app

IMAGES = 4
MEASURES = {
    "score", "macro", "exact", "loyalty", "kl", "kl_first", "hallucination", "localisation", "pope", "families",
}  # fmt: skip


def ask(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def questions(folder: Path) -> Path:
    """Two questions about each of a few pictures of noise."""
    rows = []
    for number in range(IMAGES):
        pixels = np.random.default_rng(number).integers(0, 256, (50, 70, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        for text, answer in (("is there a cat?", "no"), ("where is it?", "left")):
            rows.append({"image": f"{number}.png", "question": text, "answer": answer})
    path = folder / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("eval")
    write_toy(folder / "toy")
    questions(folder)
    return folder / "toy"


def test_json_has_the_documented_shape(toy: Path, tmp_path: Path) -> None:
    given = (toy, "--data", toy.parent / "questions.jsonl", "--no-gate", "--max-new", 3, "-o", tmp_path / "out")
    done = ask(*given, "--json")
    assert done.exit_code == 0, done.stderr
    fields = json.loads(done.stdout)
    assert list(fields) == [
        "format", "verb", "tokcarve", "artifact", "model", "method", "made_of", "runtime", "max_new", "seed", "data",
        "gate", "sides", "best_control", "differences", "verdict", "notes", "out",
    ]  # fmt: skip
    assert set(fields["data"]) == {"source", "sha256", "questions", "images", "families", "unanswerable"}
    assert set(fields["gate"]) == {"rule", "score", "needed", "passed", "detail", "ignored"}
    for side in fields["sides"].values():
        counts = {"method", "runtime", "provider", "tokens", "tokens_mean", "runs"}
        assert set(side) == MEASURES | counts
        assert set(side["pope"]) == {"accuracy", "precision", "recall", "f1", "yes_ratio", "unclear"}
    assert set(fields["differences"]["pruned - unpruned"]) == MEASURES
    kept = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert kept == {key: value for key, value in fields.items() if key not in ("format", "verb", "out")}


def test_people_get_tables_a_verdict_and_what_was_left_out(toy: Path, tmp_path: Path) -> None:
    data = questions(tmp_path)
    data.write_text(data.read_text() * 2 + "{\n")
    done = ask(toy, "--data", data, "--no-gate", "--max-new", 2, "-o", tmp_path / "out")
    assert done.exit_code == 0, done.stderr
    assert "line 17 is not JSON" in done.stdout.replace("\n", "")
    for words in ("with 4 of 16 visual tokens", "the gate is closed, and was ignored", "no controls: ", "written to"):
        assert words in done.stdout, words


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "questions.jsonl"], "does not clear the gate"),
        (["--data", "none.jsonl"], "none.jsonl does not exist"),
        (["--data", "empty.jsonl"], "it is empty"),
        (["--limit", "0"], "--limit 0 leaves no question"),
        (["--data", "questions.jsonl", "--floor", "60"], "--floor 60 is no share"),
        (["--data", "questions.jsonl", "--tokens", "5"], "tokens=5 is no budget of this artifact"),
        (["--data", "questions.jsonl", "--max-new", "0"], "--max-new 0 does not fit"),
        (["--data", "questions.jsonl", "--threads", "0"], "threads=0"),
        (["--data", "questions.jsonl", "--control", "none"], "none does not exist"),
        (["--data", "questions.jsonl", "--runtime", "trt"], "trt"),
        (["--data", "questions.jsonl", "-o", "questions.jsonl"], "is a file; choose another -o"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(
    toy: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(toy.parent)
    Path("empty.jsonl").write_text("\n")
    done = ask("toy", *arguments)
    assert done.exit_code == 2 and message in done.stderr and not done.stdout
    assert not (toy / "evaluation").exists()


def test_it_runs_without_torch_and_says_what_is_missing(toy: Path, tmp_path: Path) -> None:
    given = (
        toy,
        "--data",
        toy.parent / "questions.jsonl",
        "--no-gate",
        "--max-new",
        2,
        "-o",
        tmp_path / "out",
        "--json",
    )
    done = on_a_device("eval", *given)
    assert done.returncode == 0, done.stderr
    assert any(
        "is not installed here (pip install 'tokcarve[compress]')" in one for one in json.loads(done.stdout)["notes"]
    )
    done = on_a_device("eval", *given, "--runtime", "torch")
    assert done.returncode == 2 and "pip install 'tokcarve[compress]'" in done.stderr
