"""A small random model as an artifact, and exported."""

import contextlib
from pathlib import Path

from models import build, write

from tokcarve.exporters.device.face import EXPORT, file_record, read_export, seal
from tokcarve.exporters.export import ExportResult, export_artifact
from tokcarve.exporters.faces.kind import Request
from tokcarve.recipes.compress import compress

__all__ = ["KEEP", "MAX_NEW", "MAX_TEXT", "make_artifact", "make_export", "reseal"]

KEEP, MAX_TEXT, MAX_NEW = 16, 8, 6


def make_artifact(
    directory: Path,
    method: str = "vtc_cls",
    tokens: int = KEEP,
    *,
    text_layers: int = 2,
    words: bool = False,
    **settings: object,
) -> Path:
    """An artifact of a random model, not exported, in `directory`; `words` as in `llama_tokenizer`."""
    model = build("qwen2", "clip", vision_layers=4, text_layers=text_layers)
    write(model, directory / "base", words=words)
    with contextlib.chdir(directory):
        compress(str(directory / "base"), method=method, tokens=tokens, out="artifact", **settings)  # type: ignore[arg-type]
    return directory / "artifact"


def make_export(artifact: Path, *, force: bool = False, **settings: object) -> ExportResult:
    """Its export, the `ort` face alone unless told."""
    asked = Request(**{"max_text": MAX_TEXT, "max_new": MAX_NEW, **settings})  # type: ignore[arg-type]
    return export_artifact(artifact, asked, force=force)


def reseal(artifact: Path) -> None:
    """What somebody does who wants the record of changed files to fit them."""
    record = read_export(artifact)
    files = {name: file_record(artifact / EXPORT / name) for name in record.files}
    (artifact / EXPORT / "export.json").write_text(seal(record.model_copy(update={"files": files})))
