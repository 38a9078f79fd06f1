"""A small LLaVA-1.5 with drawn scenes whose objects are known, so that pruning can be measured without a download.

Nothing here imports torch; `tokcarve.tiny.model`, `.train` and `.check` do.
"""

from __future__ import annotations

from pathlib import Path

from tokcarve.tiny.data import RECORDED, SPLIT_SHA256, Sample, calibration, digest, evaluation, split
from tokcarve.tiny.draw import FRAME, PATCH, Scene, Thing, draw, patch_owner, sample_scene
from tokcarve.tiny.questions import CORE, FAMILIES, Question, questions

__all__ = [
    "CORE",
    "FAMILIES",
    "FRAME",
    "PATCH",
    "RECORDED",
    "SPLIT_SHA256",
    "Question",
    "Sample",
    "Scene",
    "Thing",
    "calibration",
    "checkpoint_dir",
    "digest",
    "draw",
    "evaluation",
    "patch_owner",
    "questions",
    "sample_scene",
    "split",
]


def checkpoint_dir() -> Path:
    """The directory of the bundled checkpoint, in the layout that `from_pretrained` reads."""
    return Path(__file__).resolve().parent / "checkpoint"
