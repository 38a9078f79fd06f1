"""The stock processor of transformers on the files of an `hf` face. Needs transformers, and no torch."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tokcarve.exporters.device.compare import Check
from tokcarve.passes.geometry import Geometry

__all__ = ["check_processor"]

_SIDES = (200, 150)  # of a picture that must be scaled and cropped


def check_processor(export: Path, own: Path, geometry: Geometry, tokens: int) -> list[Check]:
    """Whether the processor of the directory `export` writes `tokens` image tokens for an image, and makes the pixels
    of it that the checkpoint's `own` processor makes.

    Raises ModuleNotFoundError where transformers is not installed.
    """
    import transformers

    stock: Any = transformers
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*_SIDES, 3), np.uint8))
    try:
        processor = stock.AutoProcessor.from_pretrained(export, local_files_only=True)
        made = processor(images=picture, text=f"{processor.image_token} what is this?", return_tensors="np")
        expected = stock.AutoImageProcessor.from_pretrained(own, local_files_only=True)(picture, return_tensors="np")
    except Exception as error:  # whatever is wrong with the files, in transformers' own ways
        why = " ".join(str(error).split()) or type(error).__name__
        return [Check(name="hf: stock processor", passed=False, detail=why[:300])]
    return [_counted(made, processor, geometry, tokens), _same_pixels(made, expected)]


def _counted(made: Any, processor: Any, geometry: Geometry, tokens: int) -> Check:
    found = int((np.asarray(made["input_ids"]) == geometry.image_token_id).sum())
    detail = (
        f"{type(processor).__name__} writes {found} image tokens for an image, {tokens} of {geometry.total} are left"
    )
    return Check(name="hf: stock processor", passed=found == tokens, detail=detail)


def _same_pixels(made: Any, expected: Any) -> Check:
    same = np.array_equal(np.asarray(made["pixel_values"]), np.asarray(expected["pixel_values"]))
    detail = f"pixels {'are' if same else 'are not'} those of the checkpoint's own image processor"
    return Check(name="hf: stock image processor", passed=same, detail=detail)
