"""A calibration cut short and resumed writes the bytes of one that was not, and does again only what was in hand."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
from models import build, write

from tokcarve.passes.errors import SampleError
from tokcarve.recipes.artifact import read_artifact
from tokcarve.recipes.calibration.bench import How
from tokcarve.recipes.calibration.journal import Record, Task
from tokcarve.recipes.calibration.work import Worker
from tokcarve.recipes.compress import compress_recipe
from tokcarve.recipes.make import make_recipe

FLOWCUT = {"method": "flowcut", "tokens": 16}
SETTINGS: dict[str, dict[str, Any]] = {
    "counts": FLOWCUT,
    "a merge that is learned": {"method": "prune_and_merge", "tokens": 16},
    "keep auto": {"method": "uniform", "keep": "auto", "max_loss": 5.0},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(build("qwen2", "clip", vision_layers=4, text_layers=2), tmp_path_factory.mktemp("base") / "model")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """The tasks that workers do; {"left": n} in it in advance has Ctrl-C come after n of them."""
    done = list[Task]()
    work = Worker.__call__

    def counted(self: Worker, task: Task) -> Record:
        if done and done[0].get("left") == len(done) - 1:
            raise KeyboardInterrupt
        done.append(task)
        return work(self, task)

    monkeypatch.setattr(Worker, "__call__", counted)
    return done


def carve(base: Path, out: Path, settings: dict[str, Any], *, count: int = 8, resume: bool = False) -> bytes:
    recipe = make_recipe(str(base), samples="scenes", count=count, **settings)
    with contextlib.chdir(out.parent):
        artifact = compress_recipe(recipe, out=out, how=How(resume=resume))
    return (artifact.directory / "tokcarve.json").read_bytes()


@pytest.mark.parametrize("name", SETTINGS)
def test_resumed_is_uninterrupted(base: Path, tmp_path: Path, calls: list[Task], name: str) -> None:
    whole = carve(base, tmp_path / "whole", SETTINGS[name])
    total, modules = len(calls), read_artifact(tmp_path / "whole").tensors()
    calls.clear()
    calls.append({"left": total // 2})
    with pytest.raises(KeyboardInterrupt, match="go on with --resume"):
        carve(base, tmp_path / "cut", SETTINGS[name])
    assert not (tmp_path / "cut").exists() and (tmp_path / ".cut.calibration.jsonl").exists()
    calls.clear()
    assert carve(base, tmp_path / "cut", SETTINGS[name], resume=True) == whole
    assert len(calls) <= total - total // 2 + 1
    assert read_artifact(tmp_path / "cut").tensors() == modules
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "cut", ".tokcarve"}


def test_without_resume_it_begins_again(base: Path, tmp_path: Path, calls: list[Task]) -> None:
    calls.append({"left": 4})
    with pytest.raises(KeyboardInterrupt):
        carve(base, tmp_path / "a", FLOWCUT)
    calls.clear()
    carve(base, tmp_path / "a", FLOWCUT)
    again = len(calls)
    calls.clear()
    carve(base, tmp_path / "b", FLOWCUT)
    assert again == len(calls)


def test_a_changed_sample_set_is_refused_and_the_journal_stays(base: Path, tmp_path: Path, calls: list[Task]) -> None:
    calls.append({"left": 4})
    with pytest.raises(KeyboardInterrupt):
        carve(base, tmp_path / "a", FLOWCUT)
    kept = (tmp_path / ".a.calibration.jsonl").read_bytes()
    with pytest.raises(
        SampleError, match=r"cannot be resumed: sample set was \w+ and is \w+; give what was given then"
    ):
        carve(base, tmp_path / "a", FLOWCUT, count=9, resume=True)
    assert (tmp_path / ".a.calibration.jsonl").read_bytes() == kept
    calls.clear()
    carve(base, tmp_path / "a", FLOWCUT, resume=True)
    rest = len(calls)
    calls.clear()
    carve(base, tmp_path / "b", FLOWCUT)
    assert len(calls) == rest + 4


def test_nothing_is_wrong_with_nothing_to_resume(base: Path, tmp_path: Path) -> None:
    assert carve(base, tmp_path / "a", FLOWCUT, resume=True) == carve(base, tmp_path / "b", FLOWCUT)
