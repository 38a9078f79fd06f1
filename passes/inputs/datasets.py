"""A Hugging Face dataset that `save_to_disk` wrote, as samples; its Arrow tables are read, and no code of it is run."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from tokcarve.passes.errors import ImageError, SampleError
from tokcarve.passes.inputs.pictures import open_bytes, open_image

__all__ = ["Row", "is_dataset", "rows_of"]

PROMPTS, ANSWERS = ("prompt", "question"), ("answer", "answers")
"""Columns that may hold them, the first that is there."""


def is_dataset(folder: Path) -> bool:
    """Whether a folder is a dataset, or several splits of one."""
    return any((folder / name).is_file() for name in ("state.json", "dataset_dict.json"))


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row, not decoded yet."""

    table: Any
    number: int
    name: str
    prompt: str | None
    answer: str | None

    def content(self) -> bytes:
        """The image as it is stored; ImageError where there is none."""
        cell = self.table[self.number]["image"] or {}
        if cell.get("bytes"):
            return bytes(cell["bytes"])
        if cell.get("path"):
            return Path(cell["path"]).read_bytes()
        raise ImageError(f"{self.name} has no image")

    def open(self) -> Image.Image:
        """The image as RGB; ImageError where it cannot be read."""
        cell = self.table[self.number]["image"] or {}
        if not cell.get("bytes") and cell.get("path"):
            return open_image(cell["path"])
        return open_bytes(self.content(), self.name)


def rows_of(folder: Path) -> Sequence[Row]:
    """The rows of a dataset with a column `image`, and perhaps `prompt` (or `question`) and `answer` (or `answers`).

    SampleError for several splits, a dataset that cannot be read, and one without images.
    """
    table = _table(folder)
    names = table.column_names
    if "image" not in names:
        raise SampleError(f"dataset {folder} has no column 'image' (it has {', '.join(names)}); rename the one it has")
    images = table.select_columns(["image"])
    try:
        images = images.cast_column("image", _library().Image(decode=False))
    except (TypeError, ValueError, NotImplementedError):
        raise SampleError(f"column 'image' of dataset {folder} holds no images; cast it to datasets.Image") from None
    prompts, answers = (_texts(table, [one for one in kinds if one in names]) for kinds in (PROMPTS, ANSWERS))
    return [
        Row(table=images, number=number, name=f"{folder}, row {number}", prompt=prompts[number], answer=answers[number])
        for number in range(len(table))
    ]


def _table(folder: Path) -> Any:
    if (folder / "dataset_dict.json").is_file():
        splits = sorted(str(one) for one in folder.iterdir() if is_dataset(one))
        raise SampleError(f"dataset {folder} holds several splits; give one of {', '.join(splits)}")
    try:
        return _library().load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SampleError(f"dataset {folder} cannot be read ({error}); save it again with save_to_disk") from None


def _texts(table: Any, columns: list[str]) -> list[str | None]:
    """The first of these columns of text, if any; of several answers the first."""
    if not columns:
        return [None] * len(table)
    found = (cell[0] if isinstance(cell, list) and cell else cell for cell in table[columns[0]])
    return [cell if isinstance(cell, str) else None for cell in found]


def _library() -> Any:
    try:
        import datasets
    except ModuleNotFoundError:
        raise SampleError(
            "reading a Hugging Face dataset needs a package that is not installed: pip install 'tokcarve[datasets]'"
        ) from None
    return datasets
