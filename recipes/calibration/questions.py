"""Samples as questions to a model: prepared by the code that prepares them on a device."""

from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from tokcarve.passes.asking import Question
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.graph import TokenGraphs, thread
from tokcarve.passes.inputs.images import load_image_processor
from tokcarve.passes.inputs.prompt import load_prompter
from tokcarve.passes.inputs.samples import Sample

__all__ = ["PROMPT", "Asker"]

PROMPT = "What is shown in this image?"
"""Asked of a sample that brings no prompt."""


class Asker:
    """The image processor and the prompter of the checkpoint in `directory`."""

    def __init__(self, directory: Path, geometry: Geometry) -> None:
        self.image_token = geometry.image_token_id
        self.processor = load_image_processor(directory)
        self.prompter = load_prompter(directory, geometry.image_token_id)

    def pixels(self, image: Image) -> Tensor:
        """float32 [1, 3, height, width]."""
        return torch.from_numpy(self.processor([image]))

    def question(self, sample: Sample, graphs: TokenGraphs) -> Question:
        """The sample's prompt with its image; a method that asks for a state is given an empty one."""
        ids = self.prompter.encode(sample.prompt or PROMPT, 1)
        place = ids.index(self.image_token)
        state = {name: torch.zeros(1, thread(graphs.vision).count) for name in graphs.asks}
        return Question(
            pixel_values=self.pixels(sample.image),
            before=tuple(ids[:place]),
            after=tuple(ids[place + 1 :]),
            state=state,
        )
