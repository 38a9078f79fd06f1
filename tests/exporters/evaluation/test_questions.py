"""Sets of questions: what a line may hold, what is counted as unanswerable, what is refused."""

import json
from pathlib import Path

import pytest
from PIL import Image

from tokcarve.exporters.evaluation.questions import open_questions, usable
from tokcarve.passes.errors import SampleError
from tokcarve.tiny import evaluation

GOOD = {"image": "a.png", "question": "What is it?", "answer": "a cat"}


def write(folder: Path, *lines: object) -> Path:
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (8, 6), colour).save(folder / name)
    path = folder / "questions.jsonl"
    path.write_text("".join((one if isinstance(one, str) else json.dumps(one)) + "\n" for one in lines))
    return path


def test_fields_come_as_they_are(tmp_path: Path) -> None:
    tagged = GOOD | {"image": "b.png", "answers": [1, "one"], "family": " Counting ", "kind": "X", "id": 7}
    made = open_questions(write(tmp_path, GOOD, "", tagged, GOOD))
    first, second, third = made.questions
    assert (first.id, first.text, first.answers, first.family) == ("1", "What is it?", ("a cat",), "")
    assert (second.id, second.answers, second.family, second.kind) == ("7", ("1", "one"), "counting", "x")
    assert made.groups == [0, 1, 0] and second.open().getpixel((0, 0)) == (0, 0, 255) and not made.unanswerable


def test_the_hash_is_of_images_questions_and_answers(tmp_path: Path) -> None:
    first = open_questions(write(tmp_path, GOOD)).sha256
    assert open_questions(write(tmp_path, GOOD | {"id": "x"})).sha256 == first
    assert open_questions(write(tmp_path, GOOD | {"answer": "a dog"})).sha256 != first
    path = write(tmp_path, GOOD)
    Image.new("RGB", (8, 6), "green").save(tmp_path / "a.png")
    assert open_questions(path).sha256 != first


BROKEN = [
    ("{", "is not JSON"),
    ("[1]", "is no JSON object"),
    ({"question": "x", "answer": "y"}, 'has no "image"'),
    ({"image": "a.png", "question": " ", "answer": "y"}, 'has no "question"'),
    ({"image": "a.png", "question": "x"}, 'has no "answer"'),
    ({"image": "a.png", "question": "x", "answers": []}, 'has no "answer"'),
    ({"image": "a.png", "question": "x", "answers": ["y", None]}, 'has no "answer"'),
    ({"image": "none.png", "question": "x", "answer": "y"}, "none.png does not exist"),
    ({"image": "questions.jsonl", "question": "x", "answer": "y"}, "is not an image"),
]


@pytest.mark.parametrize(("line", "reason"), BROKEN)
def test_what_cannot_be_answered_is_counted_and_listed(tmp_path: Path, line: object, reason: str) -> None:
    made = open_questions(write(tmp_path, line, *[GOOD] * 9))
    assert len(made.questions) == 9 and len(made.unanswerable) == 1
    assert reason in made.unanswerable[0]
    with pytest.raises(SampleError, match="1 of 9 lines cannot be answered, more than one in ten"):
        open_questions(write(tmp_path, line, *[GOOD] * 8))


def test_empty_missing_and_unreadable_sets_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SampleError, match="holds no question: it is empty"):
        open_questions(write(tmp_path, "", "  "))
    with pytest.raises(SampleError, match=r"none of its 2 lines can be answered \(.*, line 1 is not JSON; .*line 2"):
        open_questions(write(tmp_path, "{", "}"))
    with pytest.raises(SampleError, match=r"none.jsonl does not exist; give lines of .*leave --data out"):
        open_questions(tmp_path / "none.jsonl")
    with pytest.raises(SampleError, match="cannot be read as text"):
        open_questions(tmp_path)
    with pytest.raises(SampleError, match="--limit 0 leaves no question"):
        open_questions(None, 0)


def test_a_limit_counts_questions_that_can_be_answered(tmp_path: Path) -> None:
    made = open_questions(write(tmp_path, *[GOOD] * 5, "{", *[GOOD] * 20), 12)
    assert len(made.questions) == 12 and len(made.unanswerable) == 1


def test_what_a_model_cannot_take_joins_the_unanswerable(tmp_path: Path) -> None:
    made = open_questions(write(tmp_path, GOOD | {"question": "long"}, *[GOOD] * 9))
    left = usable(made, lambda one: "too long" if one.text == "long" else None)
    assert len(left.questions) == 9 and left.unanswerable == ("too long",)
    with pytest.raises(SampleError, match="none of its 10 lines"):
        usable(made, lambda one: "no")


def test_the_scenes_are_the_evaluation_split_in_order() -> None:
    made, drawn = open_questions(None, 6), list(evaluation(6))
    assert [(q.text, q.answers, q.family) for q in made.questions] == [
        (s.question, (s.answer,), s.family) for s in drawn
    ]
    assert all(q.open().tobytes() == s.image.tobytes() for q, s in zip(made.questions, drawn, strict=True))
    assert made.groups == [0, 0, 0, 0, 1, 1]
