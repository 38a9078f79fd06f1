"""What methods keep of one image, seen in torch: methods tried on a model, and artifacts carved again."""

from collections.abc import Sequence
from typing import Any

from PIL.Image import Image

from tokcarve.exporters.pictures.following import follow
from tokcarve.exporters.pictures.kept import Column
from tokcarve.passes import families
from tokcarve.passes.budget import count_for
from tokcarve.passes.checkpoint import resolve
from tokcarve.passes.errors import MethodError
from tokcarve.passes.families.load import read_config, read_model
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.inputs.images import ImageProcessor
from tokcarve.passes.inputs.samples import Sample
from tokcarve.passes.stage import Method
from tokcarve.recipes.artifact import Artifact
from tokcarve.recipes.calibration.questions import Asker
from tokcarve.recipes.carve import carve, method_of, planned, rewritten
from tokcarve.recipes.make import make_recipe

__all__ = ["Model", "of_artifact"]

USUAL = 0.11
"""The share of visual tokens that is kept where no count was asked for: 64 of 576."""


class Model:
    """A model that methods are tried on; its weights are read when a first one is looked at.

    Raises ModelError for a model that cannot be found or handled.
    """

    def __init__(self, name: str) -> None:
        self.checkpoint = resolve(name)
        self.name = name
        self.geometry: Geometry = families.geometry(read_config(self.checkpoint.path))
        self.asker = Asker(self.checkpoint.path, self.geometry)
        self._graphs: Any = None

    @property
    def processor(self) -> ImageProcessor:
        """What is done to an image before the model sees it."""
        return self.asker.processor

    def plan(self, name: str, tokens: int | None) -> tuple[Method, int]:
        """A method with the parameters of its recipe, and its count: `tokens`, or 0.11 of all.

        Raises MethodError for an unknown method, one that learns from samples or keeps a state, or one that does not
        fit the model; BudgetError for a count that does not fit.
        """
        total = self.geometry.total
        count = count_for(tokens=tokens, keep=USUAL if tokens is None else None, total=total)
        recipe = make_recipe(self.name, method=name, tokens=count)
        method = method_of(name, recipe.method.parameters)
        if count < total and method.learns(self.geometry, count):
            raise MethodError(
                f"{name} is open until it has learned from samples; compress {self.name} with --method {name} "
                "--samples scenes, and show that with --artifact DIR --runtime torch"
            )
        stages = planned(method, self.geometry, count, None, "renumbered")
        if any("guide" in stage.reads for stage in stages):
            raise MethodError(
                f"{name} chooses by a state that it gathers from image to image, so one image shows nothing of it; "
                "leave it out"
            )
        return method, count

    def column(self, name: str, tokens: int | None, image: Image, prompt: str | None, new: int) -> Column:
        """What `name` keeps of an image, and `new` tokens of its answer to the prompt, if there is one."""
        method, count = self.plan(name, tokens)
        if self._graphs is None:
            self._graphs = families.capture(read_model(self.checkpoint.path))
        result = rewritten(self._graphs, method, count, None)
        notes = []
        if method.dynamic() is not None and count < self.geometry.total:
            notes.append("counts of its stages are assumed; calibrated on samples they may be others")
        sample = Sample(image=image, prompt=prompt, answer=None, source="")
        stages, answer = follow(result, self.asker.question(sample, result.graphs), new if prompt else 1)
        return Column(
            name=name,
            method=name,
            runtime="torch",
            source=self.name,
            tokens=count,
            total=self.geometry.total,
            stages=stages,
            answer=None if prompt is None else self._spelled(answer),
            notes=tuple(notes),
        )

    def _spelled(self, tokens: Sequence[int]) -> str:
        return _spell(self.asker, self.geometry, tokens)


def of_artifact(artifact: Artifact, name: str, image: Image, prompt: str | None, new: int) -> Column:
    """What an artifact keeps of an image, carved again in torch; of a budget set the largest count.

    Raises MethodError for a method that keeps a state between images, and what opening the base weights raises.
    """
    manifest = artifact.manifest
    base = artifact.open_base()
    result = carve(read_model(base.path), artifact)
    if result.graphs.asks:
        raise MethodError(
            f"{manifest.method.name} chooses by a state that it gathers from image to image, so one image shows "
            "nothing of it; use `tokcarve run` with several"
        )
    geometry = manifest.geometry
    asker = Asker(artifact.processor, geometry)
    sample = Sample(image=image, prompt=prompt, answer=None, source="")
    stages, answer = follow(result, asker.question(sample, result.graphs), new if prompt else 1)
    return Column(
        name=name,
        method=manifest.method.name,
        runtime="torch",
        source=str(artifact.directory),
        tokens=manifest.budget.tokens,
        total=geometry.total,
        stages=stages,
        answer=None if prompt is None else _spell(asker, geometry, answer),
    )


def _spell(asker: Asker, geometry: Geometry, tokens: Sequence[int]) -> str:
    end = next((i for i, token in enumerate(tokens) if token in geometry.eos_token_ids), len(tokens))
    return asker.prompter.decode(list(tokens[:end])).strip()
