"""Questions about a scene: every one has exactly one right answer, which the scene's objects decide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokcarve.tiny.draw import Scene, Thing
from tokcarve.tiny.glyphs import COLOURS, PLURALS, SHAPES

FAMILIES: tuple[str, ...] = ("existence", "colour", "shape", "place", "digit", "counting", "comparison")
CORE: tuple[str, ...] = FAMILIES[:5]
"""The families that the accuracy target covers."""
PLACES: tuple[str, ...] = ("top left", "top right", "bottom left", "bottom right")
MARGIN = 20
"""Distance in pixels from the middle line of the frame, or between two objects, below which a place is not asked."""


@dataclass(frozen=True)
class Question:
    """One question with its only right answer."""

    family: str
    text: str
    answer: str
    scene_seed: int


def article(words: str) -> str:
    """The words with the indefinite article in front."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _unique(scene: Scene) -> list[Thing]:
    """The objects whose shape occurs once."""
    counts = Counter(thing.shape for thing in scene.objects)
    return [thing for thing in scene.objects if counts[thing.shape] == 1]


def _lone_colour(scene: Scene, things: Sequence[Thing]) -> list[Thing]:
    """Those of `things` whose colour no other object of the scene has."""
    counts = Counter(thing.colour for thing in scene.objects)
    return [thing for thing in things if counts[thing.colour] == 1]


def _pick(rng: np.random.RandomState, options: Sequence[str]) -> str:
    return options[int(rng.randint(len(options)))]


def _existence(scene: Scene, rng: np.random.RandomState) -> list[tuple[str, str]]:
    shown = {(thing.shape, thing.colour) for thing in scene.objects if thing.digit is None}
    shapes = {thing.shape for thing in scene.objects if thing.digit is None}
    found: list[tuple[str, str]] = []
    absent = [shape for shape in SHAPES if shape not in shapes]
    if shapes:
        found.append((f"is there {article(_pick(rng, sorted(shapes)))}?", "yes"))
        if absent:
            found.append((f"is there {article(_pick(rng, absent))}?", "no"))
        pairs = sorted(shown)
        shape, colour = pairs[int(rng.randint(len(pairs)))]
        found.append((f"is there {article(f'{colour} {shape}')}?", "yes"))
        near = [(s, c) for s, _ in pairs for c in COLOURS] + [(s, c) for s in SHAPES for _, c in pairs]
        wrong = [pair for pair in near if pair not in shown]
        shape, colour = wrong[int(rng.randint(len(wrong)))]
        found.append((f"is there {article(f'{colour} {shape}')}?", "no"))
    return found


def _colour(scene: Scene, rng: np.random.RandomState) -> list[tuple[str, str]]:
    return [(f"what colour is the {thing.shape}?", thing.colour) for thing in _unique(scene)]


def _shape(scene: Scene, rng: np.random.RandomState) -> list[tuple[str, str]]:
    things = [thing for thing in scene.objects if thing.digit is None]
    return [(f"what shape is the {thing.colour} object?", thing.shape) for thing in _lone_colour(scene, things)]


def _place(scene: Scene, rng: np.random.RandomState) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    unique = set(_unique(scene))
    pairs = Counter((thing.shape, thing.colour) for thing in scene.objects)
    for thing in scene.objects:
        x, y = (2 * value - scene.frame for value in scene.place(thing))
        if min(abs(x), abs(y)) < 2 * MARGIN:
            continue
        answer = PLACES[2 * int(y > 0) + int(x > 0)]
        if thing in unique:
            found.append((f"where is the {thing.shape}?", answer))
        elif pairs[thing.shape, thing.colour] == 1:
            found.append((f"where is the {thing.colour} {thing.shape}?", answer))
    return found


def _digit(scene: Scene, rng: np.random.RandomState) -> list[tuple[str, str]]:
    digits = [thing for thing in scene.objects if thing.digit is not None]
    if len(digits) == 1:
        return [("what digit is shown?", str(digits[0].digit))]
    counts = Counter(thing.colour for thing in digits)
    return [(f"which digit is {thing.colour}?", str(thing.digit)) for thing in digits if counts[thing.colour] == 1]


def _counting(scene: Scene, rng: np.random.RandomState) -> list[tuple[str, str]]:
    counts = Counter(thing.shape for thing in scene.objects)
    shown = [shape for shape in SHAPES if counts[shape]]
    absent = [shape for shape in SHAPES if not counts[shape]]
    asked = [*shown, _pick(rng, absent)] if absent else shown
    return [(f"how many {PLURALS[shape]} are there?", str(counts[shape])) for shape in asked]


def _comparison(scene: Scene, rng: np.random.RandomState) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    counts = Counter(thing.shape for thing in scene.objects if thing.digit is None)
    shown = sorted(counts)
    if shown:
        first = _pick(rng, shown)
        others = [shape for shape in SHAPES if counts[shape] != counts[first]]
        if others:
            second = _pick(rng, others)
            for one, two in ((first, second), (second, first)):
                answer = "yes" if counts[one] > counts[two] else "no"
                found.append((f"are there more {PLURALS[one]} than {PLURALS[two]}?", answer))
    unique = _unique(scene)
    if len(unique) >= 2:
        one_thing, two_thing = (unique[int(i)] for i in rng.permutation(len(unique))[:2])
        for axis, word in ((0, "left of"), (1, "above")):
            gap = two_thing.centre[axis] - one_thing.centre[axis]
            if abs(gap) >= MARGIN:
                text = f"is the {one_thing.shape} {word} the {two_thing.shape}?"
                found.append((text, "yes" if gap > 0 else "no"))
    return found


_ASK = {
    "existence": _existence,
    "colour": _colour,
    "shape": _shape,
    "place": _place,
    "digit": _digit,
    "counting": _counting,
    "comparison": _comparison,
}


def questions(scene: Scene) -> list[Question]:
    """Every question that the scene answers without doubt, in the order of the families."""
    rng = np.random.RandomState((scene.seed * 7 + 3) & 0xFFFFFFFF)
    found: list[Question] = []
    for family in FAMILIES:
        found += [Question(family, text, answer, scene.seed) for text, answer in _ASK[family](scene, rng)]
    return found


class Balance:
    """Picks questions so that families, and answers within a family, are used about equally often."""

    def __init__(self, weights: dict[str, float] | None = None) -> None:
        self._weights = weights or dict.fromkeys(FAMILIES, 1.0)
        self._families: Counter[str] = Counter()
        self._answers: Counter[tuple[str, str]] = Counter()

    def pick(self, candidates: Sequence[Question], count: int) -> list[Question]:
        """At most `count` of the candidates, those of the least used family and then of the least used answer first."""
        left, chosen = list(candidates), list[Question]()
        while left and len(chosen) < count:
            best = min(
                left,
                key=lambda q: (
                    self._families[q.family] / self._weights[q.family],
                    self._answers[q.family, q.answer],
                    q.text,
                ),
            )
            left.remove(best)
            chosen.append(best)
            self._families[best.family] += 1
            self._answers[best.family, best.answer] += 1
        return chosen
