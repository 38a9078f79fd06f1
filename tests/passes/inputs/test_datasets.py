"""Datasets that save_to_disk wrote: the same samples as the images and texts that went in, and what is refused."""

import io
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from tokcarve.passes.errors import SampleError
from tokcarve.passes.inputs.samples import SampleReader, open_samples


def png(level: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), (level, 0, 0)).save(stream, "PNG")
    return stream.getvalue()


def saved(place: Path, levels: list[int] | None = None, **columns: list[Any]) -> str:
    levels = list(range(10, 22)) if levels is None else levels
    cells = [{"bytes": png(level) if level >= 0 else b"broken", "path": None} for level in levels]
    made = datasets.Dataset.from_dict({"image": cells, **columns})
    made.cast_column("image", datasets.Image()).save_to_disk(str(place))
    return str(place)


def level(sample: Any) -> int:
    return int(np.asarray(sample.image)[0, 0, 0])


def test_rows_are_samples(tmp_path: Path) -> None:
    asked, answers = [f"what {i}?" for i in range(12)], [[f"a{i}", "other"] for i in range(12)]
    found = open_samples(saved(tmp_path / "set", question=asked, answers=answers), count=12)
    assert sorted((level(s), s.prompt, s.answer) for s in found) == [(10 + i, f"what {i}?", f"a{i}") for i in range(12)]
    assert len({s.source for s in found}) == 12
    numbered = SampleReader(found)
    assert [level(numbered[i]) for i in (3, 3, 7, 0)] == [level(list(found)[i]) for i in (3, 3, 7, 0)]


def test_the_hash_is_of_what_is_in_it(tmp_path: Path) -> None:
    first, again = (saved(tmp_path / name, prompt=["x"] * 12) for name in ("a", "b"))
    other, worded = saved(tmp_path / "c", [*range(11, 23)]), saved(tmp_path / "d", prompt=["y"] * 12)
    hashes = [open_samples(one, count=12).sha256 for one in (first, again, other, worded)]
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3


def test_texts_that_are_none_are_none(tmp_path: Path) -> None:
    plain, numbers = saved(tmp_path / "plain"), saved(tmp_path / "numbers", prompt=[1] * 12, answer=[None] * 12)
    for source in (plain, numbers):
        assert {(s.prompt, s.answer) for s in open_samples(source, count=12)} == {(None, None)}


def test_a_broken_row_is_passed_over(tmp_path: Path) -> None:
    found = open_samples(saved(tmp_path / "set", [*range(30), -1]), count=31)
    assert len(found) == 30 and len(found.skipped) == 1 and "row 30" in found.skipped[0]
    with pytest.raises(SampleError, match="12 of 12 samples are broken"):
        open_samples(saved(tmp_path / "bad", [-1] * 12), count=12)


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "split"
    datasets.DatasetDict({"test": datasets.Dataset.from_dict({"image": [1]})}).save_to_disk(str(place))
    with pytest.raises(SampleError, match=r"holds several splits; give one of .*split/test"):
        open_samples(str(place), count=4)
    with pytest.raises(SampleError, match="column 'image' of dataset .* holds no images"):
        open_samples(str(place / "test"), count=4)
    datasets.Dataset.from_dict({"picture": [1], "text": ["a"]}).save_to_disk(str(tmp_path / "other"))
    with pytest.raises(SampleError, match=r"has no column 'image' \(it has picture, text\); rename the one it has"):
        open_samples(str(tmp_path / "other"), count=4)
    (tmp_path / "other" / "state.json").write_text("{")
    with pytest.raises(SampleError, match="cannot be read .*; save it again with save_to_disk"):
        open_samples(str(tmp_path / "other"), count=4)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(SampleError, match=r"pip install 'tokcarve\[datasets\]'"):
        open_samples(str(place / "test"), count=4)
