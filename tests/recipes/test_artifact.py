import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from artifacts import manifest_of, recipe_of, write
from checkpoints import write_checkpoint, write_shard

from tokcarve.passes.checkpoint import Checkpoint, open_directory
from tokcarve.passes.errors import ArtifactError, ModelError
from tokcarve.recipes import atomic
from tokcarve.recipes.artifact import (
    check_output,
    default_directory,
    last,
    read_artifact,
    remember,
    write_artifact,
)
from tokcarve.recipes.files import dump_recipe
from tokcarve.recipes.manifest import seal


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    return open_directory(write_checkpoint(tmp_path / "base"))


def _names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def _refusal(directory: Path) -> str:
    with pytest.raises(ArtifactError) as refusal:
        read_artifact(directory)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def _edit(directory: Path, **changes: Any) -> None:
    fields = json.loads((directory / "tokcarve.json").read_text())
    (directory / "tokcarve.json").write_text(json.dumps({**fields, **changes}))


def test_what_is_written_is_read(tmp_path: Path, base: Checkpoint) -> None:
    written = write(tmp_path / "out", base)
    found = read_artifact(tmp_path / "out")
    assert found == written
    assert found.manifest == seal(manifest_of(base))
    assert found.recipe == recipe_of(base)
    assert _names(tmp_path / "out") == {"tokcarve.json", "made.json", "recipe.yaml", "processor"}
    assert _names(found.processor) == {"tokenizer.json", "preprocessor_config.json"}
    assert _names(tmp_path) == {"base", "out"}
    assert found.open_base().path == base.path


def test_writing_again_gives_the_same_bytes(tmp_path: Path, base: Checkpoint) -> None:
    write(tmp_path / "one", base)
    write(tmp_path / "two", base)
    for name in ("tokcarve.json", "recipe.yaml"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_copied_weights_make_it_self_contained(tmp_path: Path, base: Checkpoint) -> None:
    written = write(tmp_path / "out", base, copy_weights=True)
    assert json.loads((written.directory / "made.json").read_text()) == {"base": None, "seconds": 0.0}
    shutil.rmtree(base.path)
    moved = (tmp_path / "out").rename(tmp_path / "elsewhere")
    assert read_artifact(moved).open_base().path == moved / "model"


def test_an_existing_output_needs_force(tmp_path: Path, base: Checkpoint) -> None:
    write(tmp_path / "out", base)
    (tmp_path / "out" / "export").mkdir()
    with pytest.raises(ArtifactError, match=r"out exists; pass --force to replace it, or choose another -o$"):
        write(tmp_path / "out", base)
    assert "export" in _names(tmp_path / "out")
    write(tmp_path / "out", base, force=True)
    assert "export" not in _names(tmp_path / "out")
    assert _names(tmp_path) == {"base", "out"}


def test_an_empty_directory_is_filled(tmp_path: Path, base: Checkpoint) -> None:
    (tmp_path / "out").mkdir()
    write(tmp_path / "out", base)
    assert "tokcarve.json" in _names(tmp_path / "out")


def test_force_never_deletes_what_is_no_artifact(tmp_path: Path, base: Checkpoint) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("mine")
    with pytest.raises(ArtifactError, match="exists and is no artifact, so it is left alone; choose another -o"):
        write(tmp_path / "home", base, force=True)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "mine"


def test_places_that_cannot_be_written(tmp_path: Path, base: Checkpoint) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="is a file; choose another -o"):
        check_output(tmp_path / "file", force=True)
    with pytest.raises(ArtifactError, match="is a file, so nothing can be written under it"):
        check_output(tmp_path / "file" / "out", force=False)
    if os.access("/proc", os.W_OK):
        with pytest.raises(ArtifactError, match="cannot be written"):
            write(Path("/proc/tokcarve/out"), base)


def test_a_directory_without_rights(tmp_path: Path, base: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ArtifactError) as refusal:
        check_output(tmp_path / "out", force=False)
    assert str(refusal.value) == f"{tmp_path} cannot be written, so out cannot be put there; choose another -o"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (errno.ENOSPC, "cannot be written: the disk is full; free some space or choose another -o"),
        (errno.EROFS, "cannot be written (Read-only file system); make it writable or choose another -o"),
    ],
)
@pytest.mark.parametrize("at", ["write_file", "copy_file", "_sync", "mkdir"])
def test_a_failing_disk_leaves_nothing_half_written(
    tmp_path: Path, base: Checkpoint, monkeypatch: pytest.MonkeyPatch, at: str, code: int, text: str
) -> None:
    write(tmp_path / "out", base)
    before = (tmp_path / "out" / "tokcarve.json").read_bytes()

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    if at == "_sync":
        monkeypatch.setattr(atomic, at, fail)
    elif at == "mkdir":
        monkeypatch.setattr(Path, at, fail)
    else:
        monkeypatch.setattr(f"tokcarve.recipes.artifact.{at}", fail)
    with pytest.raises(ArtifactError) as refusal:
        write(tmp_path / "out", base, force=True, seed=5)
    assert str(refusal.value) == f"{tmp_path / 'out'} {text}"
    assert (tmp_path / "out" / "tokcarve.json").read_bytes() == before
    assert _names(tmp_path) == {"base", "out"}


def test_an_interrupt_leaves_the_old_one(tmp_path: Path, base: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "out", base)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tokcarve.recipes.artifact.write_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "out", base, force=True, seed=5)
    assert read_artifact(tmp_path / "out").manifest.seed == 0
    assert _names(tmp_path) == {"base", "out"}


def test_no_artifact(tmp_path: Path) -> None:
    assert _refusal(tmp_path / "no").endswith(
        "does not exist; write an artifact with `tokcarve compress`, or name another"
    )
    assert _refusal(tmp_path).startswith(f"{tmp_path} is no artifact (it has no tokcarve.json); run")


@pytest.mark.parametrize("text", ["{", "", "[1]", "{}", '{"format": "1"}', '{"format": true}'])
def test_a_manifest_that_is_none(tmp_path: Path, base: Checkpoint, text: str) -> None:
    write(tmp_path / "out", base)
    (tmp_path / "out" / "tokcarve.json").write_text(text)
    assert "run `tokcarve compress` again" in _refusal(tmp_path / "out")


def test_a_manifest_of_a_newer_version(tmp_path: Path, base: Checkpoint) -> None:
    write(tmp_path / "out", base)
    _edit(tmp_path / "out", format=2, tokcarve="3.1.4", novelty=1)
    text = _refusal(tmp_path / "out")
    assert "has format 2, written by tokcarve 3.1.4; this is tokcarve 0.1.0, which reads format 1" in text


@pytest.mark.parametrize("changes", [{"seed": 1}, {"extra": 1}, {"positions": "original"}, {"digest": ""}])
def test_a_manifest_changed_by_hand(tmp_path: Path, base: Checkpoint, changes: dict[str, Any]) -> None:
    write(tmp_path / "out", base)
    _edit(tmp_path / "out", **changes)
    assert "does not match its digest, so it was changed by hand; run `tokcarve" in _refusal(tmp_path / "out")


def test_a_sealed_manifest_is_still_checked(tmp_path: Path, base: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "out", base)
    _edit(tmp_path / "out", seed="none", extra=1)
    monkeypatch.setattr("tokcarve.recipes.manifest._digest", lambda fields: fields["digest"])
    text = _refusal(tmp_path / "out")
    assert "does not fit its format (seed: Input should be a valid integer; extra: Extra inputs" in text


def test_a_recipe_of_something_else(tmp_path: Path, base: Checkpoint) -> None:
    write(tmp_path / "out", base)
    other = recipe_of(base).model_copy(update={"positions": "original"})
    (tmp_path / "out" / "recipe.yaml").write_text(dump_recipe(other))
    assert "asks for something else than tokcarve.json beside it records" in _refusal(tmp_path / "out")
    (tmp_path / "out" / "recipe.yaml").unlink()
    assert _refusal(tmp_path / "out").endswith("recipe.yaml is missing; run `tokcarve compress` again")


def test_changed_base_weights_are_noticed(tmp_path: Path, base: Checkpoint) -> None:
    written = write(tmp_path / "out", base)
    write_shard(base.path / "model.safetensors", "a", "b", "c")
    with pytest.raises(ArtifactError) as refusal:
        written.open_base()
    assert str(refusal.value) == (
        f"the base weights of {tmp_path / 'out'} have changed since it was written (model.safetensors in {base.path}); "
        "put the old files back, or run `tokcarve compress` again"
    )


def test_base_weights_that_are_gone(tmp_path: Path, base: Checkpoint) -> None:
    written = write(tmp_path / "out", base)
    shutil.rmtree(base.path)
    with pytest.raises(ModelError, match="the base weights of .* is gone; put it back, or compress again"):
        written.open_base()


def test_the_last_artifact_is_remembered(tmp_path: Path, base: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArtifactError, match="no artifact was named, and none was written in this directory yet"):
        last()
    write(tmp_path / "out", base)
    remember(Path("out"))
    assert last() == Path("out")
    assert (tmp_path / ".tokcarve" / "last").read_text() == "out\n"
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(ArtifactError, match="^out, the last artifact written here, is gone; name one, or compress"):
        last()


def test_a_working_directory_without_rights_costs_only_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".tokcarve").write_text("in the way")
    remember(tmp_path / "out")
    assert (tmp_path / ".tokcarve").read_text() == "in the way"


@pytest.mark.parametrize(
    ("name", "directory"),
    [
        ("llava-1.5-7b", "llava-1.5-7b-flowcut-k64"),
        ("llava-hf/llava-1.5-7b-hf", "llava-1.5-7b-hf-flowcut-k64"),
        ("some/folder/", "folder-flowcut-k64"),
        (".", "base-flowcut-k64"),
        ("..", "base-flowcut-k64"),
    ],
)
def test_default_names(base: Checkpoint, name: str, directory: str) -> None:
    named = Checkpoint(name=name, path=base.path, revision=None, config=base.config, shards=base.shards)
    assert default_directory(named, "flowcut", "k64") == Path(directory)


def test_write_artifact_takes_the_recipe_as_text(tmp_path: Path, base: Checkpoint) -> None:
    text = "# by hand\n" + dump_recipe(recipe_of(base))
    write_artifact(tmp_path / "out", manifest_of(base), text, base)
    assert (tmp_path / "out" / "recipe.yaml").read_text() == text
