"""Sample sets: drawn scenes, a folder of images, a JSONL of {"image", "prompt"?, "answer"?}, or a Hugging Face dataset
on disk; chosen by seed, hashed, and read one at a time."""

import hashlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from tokcarve.passes.errors import ImageError, SampleError
from tokcarve.passes.inputs.datasets import Row, is_dataset, rows_of
from tokcarve.passes.inputs.pictures import open_image

__all__ = ["Sample", "SampleReader", "SampleSet", "open_image", "open_samples"]

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
_MOST_BROKEN = 0.1
_QUESTIONS_PER_SCENE = 4
_KINDS = "give `scenes`, a folder of images, a JSONL file of {image, prompt, answer}, or a dataset saved to disk"


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One RGB image with what may be known about it; the prompt is a bare question, without chat template."""

    image: Image.Image
    prompt: str | None
    answer: str | None
    source: str


@dataclass(frozen=True, kw_only=True)
class _Entry:
    """A sample that is not open yet."""

    name: str
    prompt: str | None
    answer: str | None

    def content(self) -> bytes:
        """The image file."""
        return Path(self.name).read_bytes()

    def open(self) -> Image.Image:
        """The image."""
        return open_image(self.name)


def _sample(entry: _Entry | Row) -> Sample:
    return Sample(image=entry.open(), prompt=entry.prompt, answer=entry.answer, source=entry.name)


@dataclass(frozen=True, kw_only=True)
class SampleSet:
    """The chosen samples; iterating opens one after the other, and may be done again.

    sha256: over image bytes, prompts and answers in order; count: how many there are, at most what was asked for;
    skipped: what was passed over as broken, each with its reason.
    """

    source: str
    sha256: str
    count: int
    seed: int
    skipped: tuple[str, ...]
    read: Callable[[], Iterator[Sample]]

    def __iter__(self) -> Iterator[Sample]:
        return self.read()

    def __len__(self) -> int:
        return self.count


class SampleReader:
    """Samples by number, one open at a time; going forward reads each once."""

    def __init__(self, samples: SampleSet) -> None:
        self.samples = samples
        self._coming, self._number = iter(samples), -1
        self._current: Sample | None = None

    def __getitem__(self, number: int) -> Sample:
        if number < self._number:
            self._coming, self._number = iter(self.samples), -1
        while self._number < number:
            self._current = next(self._coming)
            self._number += 1
        assert self._current is not None
        return self._current


def open_samples(source: str, *, count: int, seed: int = 0) -> SampleSet:
    """`count` samples of a set, or all of a smaller one, in an order that `seed` fixes.

    Every chosen image is opened once here, so that a broken one is passed over now and not in the middle of the work.
    Raises SampleError for a set that does not exist, is empty, or has more than one broken sample in ten.
    """
    if count < 1:
        raise SampleError(f"count={count} of the sample set {source} is not positive; choose 1 or more")
    if source == "scenes":
        return _scenes(count, seed)
    path = Path(source).expanduser()
    if is_dataset(path):
        found: list[_Entry | Row | str] = [*rows_of(path)]
    elif path.is_dir():
        found = [
            _Entry(name=str(file), prompt=None, answer=None)
            for file in sorted(path.rglob("*"))
            if file.suffix.lower() in SUFFIXES
        ]
    elif path.is_file():
        found = [*_lines(path)]
    else:
        raise SampleError(f"sample set {source} does not exist; {_KINDS}")
    if not found:
        what = f"images ({', '.join(SUFFIXES)})" if path.is_dir() else "lines"
        raise SampleError(f"sample set {source} is empty: it holds no {what}; {_KINDS}")
    random.Random(seed).shuffle(found)
    return _chosen(source, found, count, seed)


def _chosen(source: str, found: list[_Entry | Row | str], count: int, seed: int) -> SampleSet:
    good: list[_Entry | Row] = []
    skipped: list[str] = []
    state = hashlib.sha256()
    for entry in found:
        if len(good) == count:
            break
        try:
            if isinstance(entry, str):
                raise SampleError(entry)
            entry.open()
            state.update(hashlib.sha256(entry.content()).digest())
        except (ImageError, SampleError, OSError) as error:
            skipped.append(str(error))
            continue
        state.update(json.dumps([entry.prompt, entry.answer]).encode())
        good.append(entry)
    if len(skipped) > _MOST_BROKEN * (len(good) + len(skipped)):
        shown = "; ".join(skipped[:3]) + (f"; and {len(skipped) - 3} more" if len(skipped) > 3 else "")
        raise SampleError(
            f"sample set {source}: {len(skipped)} of {len(good) + len(skipped)} samples are broken, more than one in "
            f"ten, so it is refused ({shown})"
        )
    return SampleSet(
        source=source,
        sha256=state.hexdigest(),
        count=len(good),
        seed=seed,
        skipped=tuple(skipped),
        read=lambda: map(_sample, good),
    )


def _lines(path: Path) -> list[_Entry | str]:
    """An entry for every line that is one, and a sentence for every line that is none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SampleError(f"sample set {path} cannot be read as text ({error}); {_KINDS}") from None
    lines = enumerate(text.split("\n"), start=1)
    return [_line(path, number, line) for number, line in lines if line.strip()]


def _line(path: Path, number: int, line: str) -> _Entry | str:
    try:
        fields: Any = json.loads(line)
    except (ValueError, RecursionError):
        return f"{path}, line {number} is not JSON"
    match fields:
        case {"image": str(image)}:
            prompt, answer = fields.get("prompt"), fields.get("answer")
            if all(text is None or isinstance(text, str) for text in (prompt, answer)):
                return _Entry(name=str(path.parent / image), prompt=prompt, answer=answer)
            return f"{path}, line {number}: prompt and answer must be text"
    return f'{path}, line {number} has no "image" with the path of a file'


def _scenes(count: int, seed: int) -> SampleSet:
    places = random.Random(seed)
    wanted = sorted(places.sample(range(2 * count), count))
    picked = [_QUESTIONS_PER_SCENE * scene + places.randrange(_QUESTIONS_PER_SCENE) for scene in wanted]
    read = partial(_read_scenes, picked)
    state = hashlib.sha256()
    for sample in read():
        state.update(sample.image.tobytes())
        state.update(json.dumps([sample.prompt, sample.answer]).encode())
    return SampleSet(source="scenes", sha256=state.hexdigest(), count=count, seed=seed, skipped=(), read=read)


def _read_scenes(picked: list[int]) -> Iterator[Sample]:
    from tokcarve.tiny import calibration

    wanted = set(picked)
    for number, drawn in enumerate(calibration(picked[-1] + 1)):
        if number in wanted:
            yield Sample(image=drawn.image, prompt=drawn.question, answer=drawn.answer, source=f"scenes #{number}")
