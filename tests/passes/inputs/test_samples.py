import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokcarve.passes.errors import SampleError
from tokcarve.passes.inputs.samples import open_samples


def _folder(path: Path, count: int) -> Path:
    path.mkdir()
    for number in range(count):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(path / f"{number:02}.png")
    return path


def _reds(samples: object) -> list[int]:
    return [int(np.asarray(sample.image)[0, 0, 0]) for sample in samples]  # type: ignore[attr-defined]


def _refusal(source: Path | str, count: int = 8) -> str:
    with pytest.raises(SampleError) as refusal:
        open_samples(str(source), count=count)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_a_folder_is_chosen_from_by_seed(tmp_path: Path) -> None:
    source = str(_folder(tmp_path / "set", 20))
    first, again, other = (open_samples(source, count=8, seed=seed) for seed in (1, 1, 2))
    assert len(first) == 8
    assert _reds(first) == _reds(first) == _reds(again) != _reds(other)
    assert first.sha256 == again.sha256 != other.sha256
    assert first.skipped == ()


def test_a_smaller_set_is_taken_whole_with_its_folders(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "set", 3)
    (folder / "notes.txt").write_text("not an image, and not counted as a broken one")
    (folder / "deeper").mkdir()
    Image.new("RGB", (4, 4), (9, 0, 0)).save(folder / "deeper" / "a.JPEG", quality=100)
    assert len(open_samples(str(folder), count=64)) == 4


def test_the_hash_is_of_the_content(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "set", 4)
    before = open_samples(str(folder), count=4).sha256
    moved = folder.rename(tmp_path / "elsewhere")
    assert open_samples(str(moved), count=4).sha256 == before
    Image.new("RGB", (8, 6), (99, 0, 0)).save(moved / "02.png")
    assert open_samples(str(moved), count=4).sha256 != before


def test_jsonl_has_prompts_and_answers(tmp_path: Path) -> None:
    _folder(tmp_path / "set", 2)
    lines = [
        {"image": "set/00.png", "prompt": "what is it?\u2028", "answer": "black", "id": 7},
        {"image": str(tmp_path / "set" / "01.png")},
    ]
    (tmp_path / "a.jsonl").write_text("\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n")
    found = {s.prompt: s.answer for s in open_samples(str(tmp_path / "a.jsonl"), count=5)}
    assert found == {"what is it?\u2028": "black", None: None}


def test_a_few_broken_samples_are_passed_over_and_named(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "set", 20)
    (folder / "07.png").write_bytes(b"no")
    found = open_samples(str(folder), count=20)
    assert len(found) == 19
    assert len(found.skipped) == 1 and "07.png" in found.skipped[0]
    assert 7 not in _reds(found)


def test_many_broken_samples_are_refused(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "set", 8)
    for number in range(5):
        (folder / f"0{number}.png").write_bytes(b"no")
    text = _refusal(folder)
    assert "5 of 8 samples are broken, more than one in ten, so it is refused (" in text
    assert text.endswith("; and 2 more)")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "line 1 is not JSON"),
        ("[1]", 'line 1 has no "image" with the path of a file'),
        ('{"image": 3}', 'line 1 has no "image" with the path of a file'),
        ('{"image": "a.png", "prompt": 3}', "line 1: prompt and answer must be text"),
        ('{"image": "a.png"}', "a.png does not exist"),
    ],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, fault: str) -> None:
    (tmp_path / "a.jsonl").write_text(line + "\n")
    assert fault in _refusal(tmp_path / "a.jsonl")


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    assert "is empty: it holds no images (.bmp" in _refusal(tmp_path)
    (tmp_path / "a.jsonl").write_text("\n \n")
    assert "is empty: it holds no lines; give `scenes`, a folder" in _refusal(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b"\xff\xfe\xff")
    assert "cannot be read as text" in _refusal(tmp_path / "b.jsonl")
    assert "does not exist; give `scenes`, a folder" in _refusal(tmp_path / "nothing")
    assert _refusal("scenes", count=0) == "count=0 of the sample set scenes is not positive; choose 1 or more"


def test_scenes_are_different_images_with_questions() -> None:
    first, again, other = (open_samples("scenes", count=6, seed=seed) for seed in (0, 0, 1))
    seen = list(first)
    assert len(seen) == len(first) == 6
    assert len({sample.image.tobytes() for sample in seen}) == 6
    assert all(sample.prompt and sample.answer for sample in seen)
    assert first.sha256 == again.sha256 != other.sha256
    assert [sample.source for sample in again] == [sample.source for sample in seen]
