"""Questions with known answers: the bundled scenes, or a JSONL file of

    {"image": "a.png", "question": "...", "answer": "..." or "answers": ["...", ...], "family"?, "kind"?, "id"?}

Paths are relative to the file. A question is about existence, or about a place, where its family or kind says
`existence`, or `place` or `localisation`; without either, one that begins with "is there" is about existence.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from PIL import Image

from tokcarve.exporters.evaluation.normalise import polarity
from tokcarve.passes.errors import ImageError, SampleError
from tokcarve.passes.inputs.pictures import open_image

__all__ = ["SCENES", "Question", "QuestionSet", "asked_about", "open_questions", "usable"]

SCENES = "scenes"
"""What the bundled evaluation scenes are called."""

_MOST_BROKEN = 0.1
_KEYS = 'give lines of {"image", "question", "answer" or "answers"}'
_LOCALISATION = frozenset(("place", "localisation", "localization"))


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question; `picture` names its image, which `open` reads, and questions of one picture share it."""

    id: str
    text: str
    answers: tuple[str, ...]
    family: str
    kind: str
    picture: str
    open: Callable[[], Image.Image]

    @property
    def truth(self) -> str:
        """ "yes" or "no" where every answer that is right is that, else ""."""
        found = {polarity(answer) for answer in self.answers}
        return found.pop() if len(found) == 1 else ""

    @property
    def existence(self) -> bool:
        """Whether it asks if something is shown, to be answered yes or no."""
        tagged = "existence" in (self.family, self.kind)
        untagged = not self.family and not self.kind and self.text.lower().startswith("is there ")
        return bool(self.truth) and (tagged or untagged)

    @property
    def localisation(self) -> bool:
        """Whether it asks where something is."""
        return bool(_LOCALISATION & {self.family, self.kind})


@dataclass(frozen=True, kw_only=True)
class QuestionSet:
    """Questions in order; sha256 is over images, questions and answers; unanswerable says of others why not."""

    source: str
    sha256: str
    questions: tuple[Question, ...]
    unanswerable: tuple[str, ...]

    @property
    def groups(self) -> list[int]:
        """For every question the number of its picture."""
        numbers: dict[str, int] = {}
        return [numbers.setdefault(question.picture, len(numbers)) for question in self.questions]


def asked_about(questions: int, images: int) -> str:
    """How many questions about how many pictures, in words."""
    plural = ["" if count == 1 else "s" for count in (questions, images)]
    return f"{questions} question{plural[0]} about {images} image{plural[1]}"


def open_questions(data: Path | None, limit: int | None = None) -> QuestionSet:
    """The first `limit` answerable questions of a file, or all; of the bundled scenes for None.

    Every image is opened once here. SampleError for a set that does not exist, holds no answerable question, or more
    than one line in ten that is none.
    """
    if limit is not None and limit < 1:
        raise SampleError(f"--limit {limit} leaves no question; give 1 or more, or leave it out")
    if data is None:
        return _scenes(limit)
    try:
        text = data.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SampleError(f"{data} does not exist; {_KEYS}, or leave --data out for the bundled scenes") from None
    except (OSError, ValueError) as error:
        raise SampleError(f"{data} cannot be read as text ({error}); {_KEYS}") from None
    good: list[Question] = []
    bad: list[str] = []
    state, contents = hashlib.sha256(), lru_cache(1)(_content)
    for number, line in enumerate(text.split("\n"), start=1):
        if len(good) == limit:
            break
        if not line.strip():
            continue
        try:
            question = _question(data, number, line)
            state.update(contents(question.picture))
        except (SampleError, ImageError) as error:
            bad.append(str(error))
            continue
        state.update(json.dumps([question.text, question.answers, question.family, question.kind]).encode())
        good.append(question)
    return usable(
        QuestionSet(source=str(data), sha256=state.hexdigest(), questions=tuple(good), unanswerable=tuple(bad))
    )


def usable(found: QuestionSet, why: Callable[[Question], str | None] = lambda question: None) -> QuestionSet:
    """The questions of `found` of which `why` finds nothing to say; the others join the unanswerable.

    SampleError where nothing, or fewer than nine in ten, are left.
    """
    said = [(question, why(question)) for question in found.questions]
    good = tuple(question for question, reason in said if reason is None)
    bad = (*found.unanswerable, *(reason for _, reason in said if reason is not None))
    shown = "; ".join(bad[:3]) + (f"; and {len(bad) - 3} more" if len(bad) > 3 else "")
    if not good:
        reason = f"none of its {len(bad)} lines can be answered ({shown})" if bad else "it is empty"
        raise SampleError(f"{found.source} holds no question: {reason}; {_KEYS}")
    if len(bad) > _MOST_BROKEN * (len(good) + len(bad)):
        raise SampleError(
            f"{found.source}: {len(bad)} of {len(good) + len(bad)} lines cannot be answered, more than one in ten, so "
            f"it is refused ({shown})"
        )
    return replace(found, questions=good, unanswerable=bad)


def _question(data: Path, number: int, line: str) -> Question:
    place = f"{data}, line {number}"
    try:
        fields: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise SampleError(f"{place} is not JSON") from None
    if not isinstance(fields, dict):
        raise SampleError(f"{place} is no JSON object")
    for name in ("image", "question"):
        if not isinstance(fields.get(name), str) or not fields[name].strip():
            raise SampleError(f'{place} has no "{name}"')
    answers = fields.get("answers", [fields.get("answer")])
    answers = [str(one) if type(one) in (int, float) else one for one in answers] if isinstance(answers, list) else []
    if not answers or not all(isinstance(one, str) and one.strip() for one in answers):
        raise SampleError(f'{place} has no "answer", or "answers" that are not all text')
    path = data.parent / fields["image"]
    return Question(
        id=str(fields.get("id", number)),
        text=fields["question"],
        answers=tuple(answers),
        family=_word(fields.get("family")),
        kind=_word(fields.get("kind")),
        picture=str(path),
        open=partial(open_image, path),
    )


def _word(value: Any) -> str:
    return value.strip().lower() if isinstance(value, str) else ""


def _content(path: str) -> bytes:
    """The hash of an image file that can be opened; ImageError for another."""
    open_image(path)
    return hashlib.sha256(Path(path).read_bytes()).digest()


def _scenes(limit: int | None) -> QuestionSet:
    from tokcarve.tiny import digest, draw, evaluation, split

    def each() -> Iterator[Question]:
        drawn = lru_cache(1)(draw)
        for scene, asked in split("evaluation"):
            for place, one in enumerate(asked):
                name = f"scene {scene.seed}"
                yield Question(
                    id=f"{scene.seed}.{place}",
                    text=one.text,
                    answers=(one.answer,),
                    family=one.family,
                    kind="",
                    picture=name,
                    open=partial(drawn, scene),
                )

    questions = tuple(one for _, one in zip(range(limit), each(), strict=False)) if limit is not None else tuple(each())
    sha256 = digest(evaluation(len(questions)))
    return QuestionSet(source=SCENES, sha256=sha256, questions=questions, unanswerable=())
