"""The proof of a `genai` face from its files: questions about image files, answered by its graphs in a loop of our own,
and by onnxruntime-genai where that is installed. No torch."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokcarve.exporters.device.compare import TOLERANCES, Check, Said, check_power, close, same_tokens
from tokcarve.exporters.device.face import FOLDER, ExportRecord
from tokcarve.exporters.device.growing import Growing, Heard
from tokcarve.exporters.device.stock_genai import StockGenai, version
from tokcarve.passes.errors import ArtifactError

__all__ = ["PLACE", "QUESTIONS", "Photograph", "check_photographs", "read_photographs", "save_photographs"]

PLACE, QUESTIONS = "genai", "questions.npz"
"""Where in an export the pictures are, and the file there with what torch says of them."""


@dataclass(frozen=True, kw_only=True)
class Photograph:
    """A question about one picture, the ids [rows] of its prompt as the runtime must have them, and what torch says of
    it, carved and whole."""

    question: str
    ids: NDArray[np.int64]
    carved: Said
    plain: Said


def save_photographs(place: Path, made: Sequence[Photograph]) -> None:
    """What `read_photographs` reads, as `.npz`, one row per question; ids have -1 behind their end."""
    longest = max(len(one.ids) for one in made)
    arrays: dict[str, Any] = {
        "questions": np.array([one.question for one in made]),
        "input_ids": np.stack([np.pad(one.ids, (0, longest - len(one.ids)), constant_values=-1) for one in made]),
    }
    for side, answers in (("", [one.carved for one in made]), ("plain.", [one.plain for one in made])):
        arrays |= {
            f"{side}logits": np.stack([one.logits for one in answers]),
            f"{side}tokens": np.stack([one.tokens for one in answers]),
            f"{side}margins": np.stack([one.margins for one in answers if one.margins is not None]),
        }
    np.savez(place / QUESTIONS, **arrays)


def read_photographs(place: Path) -> list[Photograph]:
    """The questions in the directory `place`, in order; ArtifactError for a file that holds none."""
    try:
        with np.load(place / QUESTIONS, allow_pickle=False) as stored:
            arrays = dict(stored)
        return [_photograph(arrays, i) for i in range(len(arrays["questions"]))]
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise ArtifactError(f"{place / QUESTIONS} holds no questions ({error}); export again") from None


def _photograph(arrays: dict[str, Any], i: int) -> Photograph:
    ids = arrays["input_ids"][i]
    sides = [
        Said(
            kept=np.zeros(0, np.int64),
            features=np.zeros((0, 0), np.float32),
            logits=arrays[f"{side}logits"][i],
            tokens=arrays[f"{side}tokens"][i],
            margins=arrays[f"{side}margins"][i],
        )
        for side in ("", "plain.")
    ]
    return Photograph(question=str(arrays["questions"][i]), ids=ids[ids >= 0], carved=sides[0], plain=sides[1])


def check_photographs(export: Path, record: ExportRecord) -> tuple[list[Check], list[str]]:
    """Checks of the face in the directory `export`, and what they leave open."""
    asked, left = read_photographs(export / PLACE), ["face genai: no GPU provider was tried"]
    pictures = [export / PLACE / f"{i}.png" for i in range(len(asked))]
    checks = _ours(export / FOLDER, asked, pictures)
    installed = version()
    if installed is None:
        left.append(
            "face genai: the stock runtime was not tried, for onnxruntime-genai is not installed "
            "(pip install 'tokcarve[genai]'); its graphs ran in ONNX Runtime, fed as it would feed them"
        )
    else:
        checks += _stock(export / FOLDER, asked, pictures, record.geometry.eos_token_ids, installed)
    power = check_power([one.carved for one in asked], [one.plain for one in asked])
    if power.passed:
        checks.append(replace(power, name="genai: power"))
    else:
        left.append(f"face genai: the comparison has no power to tell the pruned model apart: {power.detail}")
    return checks, left


def _ours(folder: Path, asked: Sequence[Photograph], pictures: Sequence[Path]) -> list[Check]:
    """The graphs in a loop of our own."""
    try:
        runs = Growing(folder)
        heard = [
            runs.answer(Image.open(picture), one.ids.tolist(), len(one.carved.tokens))
            for one, picture in zip(asked, pictures, strict=True)
        ]
    except Exception as error:  # graphs that do not fit together fail in ONNX Runtime's own ways
        return [_failed("genai: the graphs run", error)]
    return _compared("genai", heard, [one.carved for one in asked])


def _stock(
    folder: Path, asked: Sequence[Photograph], pictures: Sequence[Path], stops: Sequence[int], installed: str
) -> list[Check]:
    """The stock runtime, from text and image files."""
    name = f"onnxruntime-genai {installed}"
    try:
        runs = StockGenai(folder)
        texts = [runs.prompt(json.dumps([{"role": "user", "content": one.question}])) for one in asked]
        heard = [
            runs.answer(picture, text, len(one.carved.tokens))
            for one, text, picture in zip(asked, texts, pictures, strict=True)
        ]
    except Exception as error:  # it raises its own kinds
        return [_failed(f"{name}: runs", error)]
    other = [i for i, (made, one) in enumerate(zip(heard, asked, strict=True)) if not np.array_equal(made.ids, one.ids)]
    detail = f"question {other[0]}: its tokenizer makes other tokens" if other else f"equal on {len(asked)} questions"
    prompts = Check(name=f"{name}: prompt tokens", passed=not other, detail=detail)
    return [prompts, *_compared(name, heard, [_until_stop(one.carved, stops) for one in asked])]


def _until_stop(said: Said, stops: Sequence[int]) -> Said:
    """An answer up to its first stop token, where the runtime ends."""
    ends = [i + 1 for i, token in enumerate(said.tokens.tolist()) if token in stops]
    return said if not ends else replace(said, tokens=said.tokens[: ends[0]])


def _compared(side: str, heard: Sequence[Heard], expected: Sequence[Said]) -> list[Check]:
    pairs = [(_as_long(found, one), one) for found, one in zip(heard, expected, strict=True)]
    return [
        close(f"{side}: logits", [(found.logits, one.logits) for found, one in pairs], "float32"),
        same_tokens(f"{side}: greedy tokens", pairs, TOLERANCES["float32"]),
    ]


def _as_long(found: Heard, one: Said) -> Said:
    """What was heard, cut to the length of what is expected; where it ended before, with -1 behind it."""
    missing = max(0, len(one.tokens) - len(found.tokens))
    tokens = np.pad(found.tokens, (0, missing), constant_values=-1)[: len(one.tokens)]
    return replace(one, logits=found.logits, tokens=tokens)


def _failed(name: str, error: Exception) -> Check:
    return Check(name=name, passed=False, detail=" ".join(str(error).split())[:300] or type(error).__name__)
