"""The artifact: the directory that `compress` writes and that everything later reads.

    tokcarve.json   the manifest      recipe.yaml   what was asked for, complete
    modules.safetensors   tensors that calibration gave the method, where it has any
    processor/      tokenizer and image processor files of the checkpoint
    model/          the base weights, only with copied weights
    export/<face>/  what `export` adds

It is written beside its place and renamed, so that an interruption leaves the old one or none.
"""

import contextlib
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from tokcarve.passes.checkpoint import ALIASES, Checkpoint, changed_files, open_directory, resolve
from tokcarve.passes.errors import ArtifactError, ModelError
from tokcarve.recipes.atomic import check_target, copy_file, replace_directory, write_file
from tokcarve.recipes.files import load_recipe
from tokcarve.recipes.manifest import Manifest, MethodRecord, parse_manifest, seal
from tokcarve.recipes.schema import Recipe

__all__ = [
    "MANIFEST",
    "Artifact",
    "Manifest",
    "check_output",
    "default_directory",
    "last",
    "read_artifact",
    "remember",
    "write_artifact",
]

MANIFEST = "tokcarve.json"
_RECIPE, _PROCESSOR, _MODEL, _MODULES = "recipe.yaml", "processor", "model", "modules.safetensors"
_MADE = "made.json"
_LAST = Path(".tokcarve") / "last"
_PROCESSOR_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
_MODEL_FILES = ("config.json", "generation_config.json", "model.safetensors.index.json", *_PROCESSOR_FILES)


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """An artifact that was read or written: its absolute directory, its manifest and its recipe."""

    directory: Path
    manifest: Manifest
    recipe: Recipe

    @property
    def processor(self) -> Path:
        """The directory of the tokenizer and image processor files."""
        return self.directory / _PROCESSOR

    def tensors(self) -> bytes | None:
        """What modules.safetensors holds, None for a method without tensors; ArtifactError where it is not that."""
        if self.manifest.modules is None:
            return None
        path = self.directory / _MODULES
        found = path.read_bytes() if path.is_file() else b""
        if hashlib.sha256(found).hexdigest() != self.manifest.modules:
            raise ArtifactError(f"{path} is not what {MANIFEST} beside it records; run `tokcarve compress` again")
        return found

    def open_base(self) -> Checkpoint:
        """The checkpoint it was made from, wherever that is now.

        Raises ModelError where it is gone or damaged, ArtifactError where its config or weights are not the same.
        """
        record = self.manifest.model
        inside = self.directory / _MODEL
        path = inside if inside.is_dir() else _base_path(self.directory / _MADE)
        if path.is_dir():
            base = open_directory(path, name=record.name, revision=record.revision)
        elif record.revision is None and record.name not in ALIASES:
            raise ModelError(f"{path}, the base weights of {self.directory}, is gone; put it back, or compress again")
        else:
            base = resolve(record.name)
        changed = changed_files(base, record.weights)
        if changed:
            raise ArtifactError(
                f"the base weights of {self.directory} have changed since it was written ({', '.join(changed)} in "
                f"{base.path}); put the old files back, or run `tokcarve compress` again"
            )
        return base


def default_directory(checkpoint: Checkpoint, method: str, count: str) -> Path:
    """NAME-METHOD-COUNT in the working directory, NAME being the last part of what the model was called."""
    name = Path(checkpoint.name).name or checkpoint.path.name
    return Path(f"{name if name != '..' else checkpoint.path.name}-{method}-{count}")


def check_output(directory: Path, *, force: bool) -> None:
    """Refuses, before anything expensive, a place where `write_artifact` could not write.

    Raises ArtifactError for a file, a directory that is no artifact, an artifact without `force`, and a parent that
    cannot be written.
    """
    place = Path(os.path.realpath(directory))
    if place.is_dir() and any(place.iterdir()):
        if not (place / MANIFEST).is_file():
            raise ArtifactError(f"{directory} exists and is no artifact, so it is left alone; choose another -o")
        if not force:
            raise ArtifactError(f"{directory} exists; pass --force to replace it, or choose another -o")
    check_target(place)


def write_artifact(
    directory: Path,
    manifest: Manifest,
    recipe_yaml: str,
    checkpoint: Checkpoint,
    *,
    force: bool = False,
    copy_weights: bool = False,
    modules: bytes | None = None,
    seconds: float = 0.0,
) -> Artifact:
    """Write all of an artifact at once; the manifest is sealed here.

    `modules` becomes modules.safetensors; `seconds`, what making it took, and where the base weights are, go to
    made.json, which is all that differs between two runs. `copy_weights` puts the checkpoint's own files inside. Raises
    ArtifactError for what `check_output` refuses and for a disk that is full or cannot be written; then nothing is left
    behind and an older artifact is untouched.
    """
    check_output(directory, force=force)
    if modules is not None:
        manifest = manifest.model_copy(update={"modules": hashlib.sha256(modules).hexdigest()})
    manifest = seal(manifest)
    place = Path(os.path.realpath(directory))
    with replace_directory(place) as work:
        _copy_files(checkpoint.path, work / _PROCESSOR, _PROCESSOR_FILES)
        if copy_weights:
            shards = tuple(shard.name for shard in checkpoint.shards)
            _copy_files(checkpoint.path, work / _MODEL, (*_MODEL_FILES, *shards))
        about = {"base": None if copy_weights else str(checkpoint.path), "seconds": seconds}
        write_file(work / _MADE, json.dumps(about) + "\n")
        if modules is not None:
            write_file(work / _MODULES, modules)
        write_file(work / _RECIPE, recipe_yaml)
        write_file(work / MANIFEST, manifest.model_dump_json(indent=2) + "\n")
    return read_artifact(place)


def _base_path(file: Path) -> Path:
    """Where the base weights were when the artifact was written."""
    try:
        return Path(json.loads(file.read_text(encoding="utf-8"))["base"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{file} does not say where the base weights are ({error}); compress again") from None


def _asked(manifest: Manifest) -> MethodRecord:
    """The method as the recipe has it: calibration may have chosen other parameters, and then says what was asked."""
    asked = (manifest.calibration or {}).get("asked")
    return manifest.method if asked is None else MethodRecord(**asked)


def read_artifact(directory: Path) -> Artifact:
    """The artifact in a directory.

    Raises ArtifactError for a directory that is none, a manifest of another format, changed by hand or malformed, and
    a recipe that is not the manifest's; RecipeError for a malformed recipe.
    """
    place = Path(os.path.realpath(directory))
    if not place.is_dir():
        raise ArtifactError(f"{directory} does not exist; write an artifact with `tokcarve compress`, or name another")
    manifest = parse_manifest(place / MANIFEST)
    if not (place / _RECIPE).is_file():
        raise ArtifactError(f"{place / _RECIPE} is missing; run `tokcarve compress` again")
    recipe = load_recipe(place / _RECIPE)
    asked = (recipe.method.name, recipe.method.parameters, recipe.budget.asked, recipe.positions)
    method = _asked(manifest)
    made = (method.name, method.params, manifest.budget.asked, manifest.positions)
    if asked != made:
        raise ArtifactError(
            f"{place / _RECIPE} asks for something else than {MANIFEST} beside it records; "
            f"run `tokcarve compress --recipe {place / _RECIPE}` to make that"
        )
    return Artifact(directory=place, manifest=manifest, recipe=recipe)


def remember(directory: Path) -> None:
    """Make `directory` the artifact that verbs without one take, in this working directory."""
    place = Path(os.path.realpath(directory))
    here = Path.cwd()
    shown = place.relative_to(here) if place.is_relative_to(here) else place
    # a working directory that cannot be written costs only this convenience, not the artifact
    with contextlib.suppress(OSError):
        _LAST.parent.mkdir(exist_ok=True)
        fresh = _LAST.with_name(f"last.{os.getpid()}")
        fresh.write_text(f"{shown}\n", encoding="utf-8")
        os.replace(fresh, _LAST)


def last() -> Path:
    """The artifact that was written last in this working directory; ArtifactError where there is none."""
    try:
        directory = Path(_LAST.read_text(encoding="utf-8").strip())
    except (OSError, ValueError):
        raise ArtifactError(
            "no artifact was named, and none was written in this directory yet; name one, or run `tokcarve compress`"
        ) from None
    if not (directory / MANIFEST).is_file():
        raise ArtifactError(f"{directory}, the last artifact written here, is gone; name one, or compress again")
    return directory


def _copy_files(source: Path, target: Path, names: tuple[str, ...]) -> None:
    target.mkdir()
    for name in names:
        if (source / name).is_file():
            copy_file(source / name, target / name)
