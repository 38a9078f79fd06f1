"""Questions about image files, and what torch answers: the checkpoint's own processor makes pixels and prompt."""

import numpy as np
import torch
from PIL import Image

from tokcarve.exporters.device.photographs import PLACE, Photograph, save_photographs
from tokcarve.exporters.faces.genai_files import marks
from tokcarve.exporters.faces.kind import Work
from tokcarve.exporters.golden import NEW_TOKENS, reference, said, stable
from tokcarve.exporters.source import read_source
from tokcarve.passes.asking import Question
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.inputs.images import ImageProcessor, load_image_processor
from tokcarve.passes.inputs.prompt import Prompter
from tokcarve.recipes.carve import carve, whole

__all__ = ["write_photographs"]

_ASKED = (
    ("what colour is the circle?", 1.0, 1.0),
    ("how many squares are there?", 1.5, 1.0),
    ("where is the digit, and what is it?", 1.2, 0.7),
)
"""A question, and the sides of its picture (width, height) in sides of what the vision tower reads."""
_ATTEMPTS = 8


def write_photographs(work: Work, prompter: Prompter) -> None:
    """Pictures as PNG files in the export, and beside them what torch makes of a question about each; nothing where
    this machine cannot run the model."""
    reading = read_source(work.source) if work.goldens else ""
    if isinstance(reading, str):
        return
    artifact, one = work.source.artifact, work.source.largest
    carved, plain = carve(reading.model, artifact, one.budget).graphs, whole(reading.model, artifact)
    place, geometry = work.directory / PLACE, work.draft.geometry
    place.mkdir()
    images, marked = load_image_processor(artifact.processor), marks(prompter, geometry)
    generator, new, made = torch.Generator().manual_seed(1), min(NEW_TOKENS, one.sizes.max_new), []
    for i, (text, wide, high) in enumerate(_ASKED):
        side = geometry.vision.image_size
        sides = (round(wide * side), round(high * side))
        picture, question = _settled(carved, prompter, images, text, sides, generator)
        picture.save(place / f"{i}.png")
        ids = marked.around(prompter.encode(text, one.sizes.tokens), geometry.image_token_id)
        answers = said([reference(graphs, question, new) for graphs in (carved, plain)])
        made.append(Photograph(question=text, ids=np.array(ids), carved=answers[0], plain=answers[1]))
    save_photographs(place, made)


def _settled(
    graphs: TokenGraphs,
    prompter: Prompter,
    images: ImageProcessor,
    text: str,
    sides: tuple[int, int],
    generator: torch.Generator,
) -> tuple[Image.Image, Question]:
    """A picture of which rounding does not decide what is kept, if one is found, and the question about it."""
    image = graphs.geometry.image_token_id
    ids = prompter.encode(text, 1)
    at = ids.index(image)
    for _ in range(_ATTEMPTS):
        picture = _picture(sides, generator)
        pixels = torch.from_numpy(images([picture]))
        question = Question(pixel_values=pixels, before=tuple(ids[:at]), after=tuple(ids[at + 1 :]))
        if stable(graphs, question, generator):
            break
    return picture, question


def _picture(sides: tuple[int, int], generator: torch.Generator) -> Image.Image:
    """Smooth coloured shapes over weak noise, no two patches alike."""
    coarse = torch.randn(1, 3, 7, 7, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=sides[::-1], mode="bicubic", align_corners=False)
    values = 128 + 60 * smooth[0] + 6 * torch.randn(3, *sides[::-1], generator=generator)
    return Image.fromarray(values.clamp(0, 255).byte().permute(1, 2, 0).numpy())
