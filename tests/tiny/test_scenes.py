"""Scenes, questions and splits: the same everywhere, with one right answer each, and balanced."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import islice

import numpy as np
import pytest

from tokcarve.tiny import (
    FAMILIES,
    FRAME,
    PATCH,
    Scene,
    calibration,
    draw,
    evaluation,
    patch_owner,
    questions,
    sample_scene,
    split,
)
from tokcarve.tiny.data import PREFIX_SAMPLES, PREFIX_SHA256, digest
from tokcarve.tiny.draw import local_mask, render
from tokcarve.tiny.glyphs import COLOURS, PLURALS, SHAPES
from tokcarve.tiny.questions import MARGIN, PLACES

SEEDS = range(500, 560)


def test_evaluation_prefix_has_the_stored_hash() -> None:
    assert digest(evaluation(PREFIX_SAMPLES)) == PREFIX_SHA256


def test_same_seed_gives_the_same_scene_and_pixels() -> None:
    for seed in (0, 7, 10_000_003):
        assert sample_scene(seed) == sample_scene(seed)
        assert draw(sample_scene(seed)).tobytes() == draw(sample_scene(seed)).tobytes()
        assert questions(sample_scene(seed)) == questions(sample_scene(seed))
    assert draw(sample_scene(1)).tobytes() != draw(sample_scene(2)).tobytes()


def test_scenes_need_no_torch() -> None:
    code = "import sys, tokcarve.tiny as t; list(t.evaluation(2)); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("size", [168, FRAME])
def test_objects_lie_inside_and_apart_and_boxes_hold_their_pixels(size: int) -> None:
    for seed in SEEDS:
        scene = sample_scene(seed, size)
        assert len(scene.objects) >= 2 or size == FRAME
        cover = np.zeros((size, size), dtype=np.int64)
        owner = render(scene)[1]
        for index, thing in enumerate(scene.objects):
            left, top, right, bottom = thing.box
            assert 0 <= left < right <= size and 0 <= top < bottom <= size
            cover[top:bottom, left:right] += 1
            ys, xs = np.nonzero(owner == index)
            assert len(ys) == local_mask(thing).sum() > 60
            assert xs.min() >= left and xs.max() < right and ys.min() >= top and ys.max() < bottom
        assert cover.max() == 1


@pytest.mark.parametrize("size", [168, FRAME])
def test_object_pixels_keep_the_named_colour(size: int) -> None:
    for seed in list(SEEDS)[:30]:
        scene = sample_scene(seed, size)
        pixels, owner = render(scene)
        for index, thing in enumerate(scene.objects):
            mean = pixels[owner == index].mean(0)
            nearest = min(COLOURS, key=lambda name: float(((mean - np.array(COLOURS[name])) ** 2).sum()))
            assert nearest == thing.colour


def test_patch_owner_marks_patches_of_every_object() -> None:
    scene = sample_scene(3)
    owner = patch_owner(scene)
    assert owner.shape == (FRAME // PATCH, FRAME // PATCH)
    for index, thing in enumerate(scene.objects):
        ys, xs = np.nonzero(owner == index)
        left, top, right, bottom = thing.box
        assert len(ys) > 0
        assert (xs * PATCH + PATCH > left).all() and (xs * PATCH < right).all()
        assert (ys * PATCH + PATCH > top).all() and (ys * PATCH < bottom).all()


def _answer(scene: Scene, text: str) -> set[str]:
    """Every answer that the objects allow, found from the words of the question alone."""
    words = text.rstrip("?").split()
    things = scene.objects
    if text.startswith("is there"):
        wanted = words[3:]
        return {
            "yes" if any(t.shape == wanted[-1] and t.colour in [*wanted[:-1], t.colour][:1] for t in things) else "no"
        }
    if text.startswith("what colour"):
        return {t.colour for t in things if t.shape == words[-1]}
    if text.startswith("what shape"):
        return {t.shape for t in things if t.colour == words[4]}
    if text.startswith("what digit"):
        return {str(t.digit) for t in things if t.shape == "digit"}
    if text.startswith("which digit"):
        return {str(t.digit) for t in things if t.shape == "digit" and t.colour == words[-1]}
    if text.startswith("how many"):
        return {str(sum(PLURALS.get(t.shape) == words[2] for t in things))}
    if text.startswith("are there more"):
        counts = Counter(PLURALS.get(t.shape) for t in things)
        return {"yes" if counts[words[3]] > counts[words[5]] else "no"}
    if text.startswith("where"):
        found = [t for t in things if t.shape == words[-1] and t.colour in [*words[3:-1], t.colour][:1]]
        return {PLACES[2 * (scene.place(t)[1] > 168) + (scene.place(t)[0] > 168)] for t in found}
    axis = 0 if "left of" in text else 1
    first = [t.centre[axis] for t in things if t.shape == words[2]]
    second = [t.centre[axis] for t in things if t.shape == words[-1]]
    assert all(abs(a - b) >= MARGIN for a in first for b in second)
    return {"yes" if a < b else "no" for a in first for b in second}


@pytest.mark.parametrize("size", [168, FRAME])
def test_every_question_has_exactly_its_answer(size: int) -> None:
    seen: set[str] = set()
    for seed in SEEDS:
        scene = sample_scene(seed, size)
        for question in questions(scene):
            assert question.scene_seed == seed
            assert _answer(scene, question.text) == {question.answer}, question
            seen.add(question.family)
    assert seen == set(FAMILIES)


def test_named_objects_are_unique() -> None:
    for seed in SEEDS:
        scene = sample_scene(seed)
        for question in questions(scene):
            if question.family in ("colour", "place") and question.text.startswith(("what colour", "where")):
                words = question.text.rstrip("?").split()
                named = [t for t in scene.objects if t.shape == words[-1]]
                if words[0] == "where" and len(words) == 5:
                    named = [t for t in named if t.colour == words[3]]
                assert len(named) == 1


def test_answers_are_balanced() -> None:
    answers: dict[str, Counter[str]] = {family: Counter() for family in FAMILIES}
    for _, chosen in islice(split("evaluation"), 120):
        for question in chosen:
            answers[question.family][question.answer] += 1
    limits = {"existence": 0.55, "comparison": 0.55, "colour": 0.2, "shape": 0.22, "place": 0.3, "digit": 0.2}
    for family, limit in limits.items():
        assert max(answers[family].values()) <= limit * answers[family].total(), family
    assert max(answers["counting"].values()) <= 0.35 * answers["counting"].total()
    totals = [found.total() for found in answers.values()]
    assert min(totals) > 0.8 * max(totals)
    assert set(answers["shape"]) == set(SHAPES) and set(answers["colour"]) == set(COLOURS)


def test_splits_share_no_scene() -> None:
    seeds = {
        name: {scene.seed for scene, _ in islice(split(name), 20)} for name in ("evaluation", "calibration", "train")
    }
    assert not seeds["evaluation"] & seeds["calibration"]
    assert not seeds["evaluation"] & seeds["train"]
    assert not seeds["calibration"] & seeds["train"]
    assert len(list(calibration(5))) == 5
    with pytest.raises(ValueError, match="unknown split"):
        next(split("test"))
