"""The three splits, each a range of scene seeds, and the fixed evaluation split with its hash."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from PIL import Image

from tokcarve.tiny.draw import Scene, draw, sample_scene
from tokcarve.tiny.questions import Balance, Question, questions

FIRST_SEED: dict[str, int] = {"evaluation": 10_000_000, "calibration": 20_000_000, "train": 30_000_000}
EVALUATION_SCENES = 250
QUESTIONS_PER_SCENE = 4
EVALUATION_SAMPLES = EVALUATION_SCENES * QUESTIONS_PER_SCENE
SPLIT_SHA256 = "f93d8fa439bd356d425b5c80dcb0e089fa69907a6136519b5067168534a88d11"
"""Of the whole evaluation split: pixels, questions and answers in order."""
RECORDED: dict[str, float] = {
    "existence": 0.986,
    "colour": 1.0,
    "shape": 0.993,
    "place": 0.993,
    "digit": 0.951,
    "counting": 0.783,
    "comparison": 0.979,
}
"""What share the unpruned checkpoint answers right, by family, on the whole evaluation split."""
PREFIX_SAMPLES = 100
PREFIX_SHA256 = "bf3c6df7a6701029a2f25517d4b38c687abf2d61bc56f2455ddc98aa8f5006a9"
"""Of the first `PREFIX_SAMPLES` samples of the evaluation split."""


@dataclass(frozen=True)
class Sample:
    """One image with one question; samples of one scene follow each other and share the image."""

    image: Image.Image
    question: str
    answer: str
    family: str
    scene: Scene


def split(name: str) -> Iterator[tuple[Scene, list[Question]]]:
    """Scenes of a split with the questions chosen for each; the evaluation split alone comes to an end."""
    if name not in FIRST_SEED:
        raise ValueError(f"unknown split {name!r}; the splits are {', '.join(FIRST_SEED)}")
    balance = Balance()
    seed = FIRST_SEED[name]
    given = 0
    while name != "evaluation" or given < EVALUATION_SCENES:
        scene = sample_scene(seed)
        seed += 1
        found = questions(scene)
        if len(found) < QUESTIONS_PER_SCENE:
            continue
        given += 1
        yield scene, balance.pick(found, QUESTIONS_PER_SCENE)


def _samples(name: str) -> Iterator[Sample]:
    for scene, asked in split(name):
        image = draw(scene)
        for question in asked:
            yield Sample(image, question.text, question.answer, question.family, scene)


def evaluation(n: int | None = None) -> Iterator[Sample]:
    """The first `n` samples of the evaluation split, or all of them."""
    return islice(_samples("evaluation"), n)


def calibration(n: int) -> Iterator[Sample]:
    """The first `n` samples of the calibration split, which shares no scene with the others."""
    return islice(_samples("calibration"), n)


def digest(samples: Iterable[Sample]) -> str:
    """sha256 over the pixels, question and answer of every sample in order."""
    state = hashlib.sha256()
    for sample in samples:
        state.update(f"{sample.image.size[0]}x{sample.image.size[1]}\n".encode())
        state.update(sample.image.tobytes())
        state.update(f"{sample.family}\n{sample.question}\n{sample.answer}\n".encode())
    return state.hexdigest()
