"""Training batches: images as uint8, dense and image-level labels, and several questions packed behind one image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
from torch.utils.data import IterableDataset
from transformers import PreTrainedTokenizerFast

from tokcarve.tiny.draw import FRAME, PATCH, Scene, owner_patches, render, sample_scene
from tokcarve.tiny.glyphs import COLOURS, SHAPES
from tokcarve.tiny.model import prompt
from tokcarve.tiny.questions import FAMILIES, Balance, Question, questions

KINDS: tuple[str, ...] = (*SHAPES, "digit")
COLOUR_NAMES: tuple[str, ...] = tuple(COLOURS)
DENSE: tuple[int, int, int, int] = (len(KINDS) + 1, len(COLOURS) + 1, 11, 4)
"""Classes of the labels of a patch: shape, colour and digit, the last class meaning none, and quarter of the frame."""
PRESENT = len(KINDS) + len(COLOURS) + 10 + len(KINDS) * len(COLOURS)
"""Length of the image-level label: shapes, colours, digits, and pairs of shape and colour."""
WEIGHTS: dict[str, float] = {
    "existence": 1.2,
    "colour": 0.5,
    "shape": 1.0,
    "place": 1.3,
    "digit": 1.8,
    "counting": 1.1,
    "comparison": 0.4,
}


@dataclass
class Batch:
    """`picked` are the patches that are seen and `grid` their places in the full frame.

    `segment` is -1 for padding, else the number of the question a token belongs to; `label` is -100 or a token.
    """

    pixels: torch.Tensor
    picked: torch.Tensor
    grid: torch.Tensor
    dense: torch.Tensor
    present: torch.Tensor
    tokens: torch.Tensor
    segment: torch.Tensor
    offset: torch.Tensor
    label: torch.Tensor
    family: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        return Batch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


class Packer:
    """Turns scenes and questions into batches."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer
        image = tokenizer.convert_tokens_to_ids("<image>")
        ids = tokenizer(prompt("is there a star?")).input_ids
        self.prefix: list[int] = ids[: ids.index(image)]
        self._skip = len(self.prefix) + 1
        self.encode = lru_cache(maxsize=None)(self._encode)

    def _encode(self, text: str, answer: str) -> tuple[list[int], list[int]]:
        asked = self._tokenizer(prompt(text)).input_ids
        whole = self._tokenizer(f"{prompt(text)} {answer}").input_ids
        return asked[self._skip :], [*whole[len(asked) :], int(self._tokenizer.eos_token_id)]

    def text(self, asked: list[list[Question]]) -> dict[str, torch.Tensor]:
        """The packed token rows of every image of the batch."""
        rows: list[list[tuple[int, int, int, int, int]]] = []
        for group in asked:
            row: list[tuple[int, int, int, int, int]] = []
            for number, question in enumerate(group):
                head, tail = self.encode(question.text, question.answer)
                ids = [*head, *tail]
                labels = [*([-100] * (len(head) - 1)), *tail, -100]
                family = FAMILIES.index(question.family)
                row += [(ids[i], number, i, labels[i], family) for i in range(len(ids) - 1)]
            rows.append(row)
        width = max(len(row) for row in rows)
        blank = (int(self._tokenizer.pad_token_id), -1, 0, -100, 0)
        table = torch.tensor([[*row, *([blank] * (width - len(row)))] for row in rows])
        names = ("tokens", "segment", "offset", "label", "family")
        return {name: table[:, :, index].contiguous() for index, name in enumerate(names)}

    def batch(self, scenes: list[Scene], asked: list[list[Question]], visible: int | None = None) -> Batch:
        """One batch of scenes of one size, of which all patches are seen or `visible` with all objects among them."""
        images, dense, present, grid, picked = [], [], [], [], []
        for scene in scenes:
            pixels, owner = render(scene)
            images.append(pixels)
            kept = np.arange((scene.size // PATCH) ** 2) if visible is None else pick(scene, owner, visible)
            picked.append(kept)
            dense.append(dense_labels(scene, owner)[kept])
            present.append(present_labels(scene))
            rows = np.arange(scene.size // PATCH)
            top, left = scene.origin[1] // PATCH, scene.origin[0] // PATCH
            grid.append(((rows + top)[:, None] * (FRAME // PATCH) + (rows + left)[None, :]).reshape(-1)[kept])
        return Batch(
            pixels=torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(),
            picked=torch.from_numpy(np.stack(picked)),
            grid=torch.from_numpy(np.stack(grid)),
            dense=torch.from_numpy(np.stack(dense)),
            present=torch.from_numpy(np.stack(present)),
            **self.text(asked),
        )


def pick(scene: Scene, owner: np.ndarray, visible: int) -> np.ndarray:
    """Sorted places of `visible` patches: those that an object touches, then their neighbours, then any others."""
    side = scene.size // PATCH
    touched = (owner >= 0).reshape(side, PATCH, side, PATCH).any((1, 3))
    wide = np.pad(touched, 1)
    near = np.zeros_like(touched)
    for down in range(3):
        for right in range(3):
            near |= wide[down : down + side, right : right + side]
    chance = np.random.RandomState((scene.seed * 5 + 4) & 0xFFFFFFFF).random_sample(side * side)
    rank = chance + touched.reshape(-1) + near.reshape(-1)
    return np.sort(np.argsort(-rank, kind="stable")[:visible])


def dense_labels(scene: Scene, owner: np.ndarray) -> np.ndarray:
    """Shape, colour and digit of the object on each patch and the quarter of the frame, as patches by four."""
    table = np.array(
        [
            (KINDS.index(thing.shape), COLOUR_NAMES.index(thing.colour), 10 if thing.digit is None else thing.digit)
            for thing in scene.objects
        ]
        + [(len(KINDS), len(COLOURS), 10)],
        dtype=np.int64,
    )
    half = FRAME // PATCH // 2
    right, low = ((np.arange(scene.size // PATCH) + start // PATCH) // half for start in scene.origin)
    quarter = (2 * low[:, None] + right[None, :]).reshape(-1, 1)
    return np.concatenate([table[owner_patches(owner, len(scene.objects)).reshape(-1)], quarter], axis=1)


def present_labels(scene: Scene) -> np.ndarray:
    """Which shapes, colours, digits and pairs of shape and colour the scene shows."""
    label = np.zeros(PRESENT, dtype=np.float32)
    for thing in scene.objects:
        kind, colour = KINDS.index(thing.shape), COLOUR_NAMES.index(thing.colour)
        label[kind] = label[len(KINDS) + colour] = 1
        if thing.digit is not None:
            label[len(KINDS) + len(COLOURS) + thing.digit] = 1
        label[len(KINDS) + len(COLOURS) + 10 + kind * len(COLOURS) + colour] = 1
    return label


class Stream(IterableDataset[Batch]):
    """Batches of fresh scenes without end, from consecutive seeds."""

    def __init__(
        self, packer: Packer, first: int, images: int, size: int, asked: int, visible: int | None = None
    ) -> None:
        self._packer, self._first, self._images = packer, first, images
        self._size, self._asked, self._visible = size, asked, visible

    def __iter__(self) -> Iterator[Batch]:
        worker = torch.utils.data.get_worker_info()
        number, step = (worker.id, worker.num_workers) if worker is not None else (0, 1)
        balance = Balance(WEIGHTS)
        seed = self._first + number * self._images
        while True:
            scenes = [sample_scene(seed + index, self._size) for index in range(self._images)]
            seed += step * self._images
            chosen = [balance.pick(questions(scene), self._asked) for scene in scenes]
            pairs = [(scene, group) for scene, group in zip(scenes, chosen, strict=True) if group]
            yield self._packer.batch([scene for scene, _ in pairs], [group for _, group in pairs], self._visible)
