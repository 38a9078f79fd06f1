"""One image under artifacts and methods: a column each, in the order in which they were named."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from PIL import Image

from tokcarve.exporters.pictures.kept import Column, Look
from tokcarve.passes.errors import MethodError, ModelError
from tokcarve.passes.inputs.images import ImageProcessor, load_image_processor
from tokcarve.passes.inputs.pictures import open_image
from tokcarve.recipes.artifact import Artifact, last, read_artifact

if TYPE_CHECKING:
    from tokcarve.exporters.pictures.carved import Model

__all__ = ["PROMPT", "look_at"]

PROMPT = "What is shown in this image?"
"""Put to methods that read the question where none was asked."""

Making = Callable[[], Column]
View = tuple[ImageProcessor, tuple[int, int], str]
"""What is done to an image, the grid of patches on it, and whose that is."""


def look_at(
    image: Path,
    *,
    artifacts: Sequence[Path] = (),
    methods: Sequence[str] = (),
    model: str = "tiny",
    tokens: int | None = None,
    prompt: str | None = None,
    runtime: Literal["ort", "torch"] = "ort",
    new: int = 16,
    tell: Callable[[str, int, int], None] | None = None,
) -> tuple[Look, Image.Image]:
    """What each of `artifacts` keeps of an image, by its exported graphs or in torch, and each of `methods` on `model`
    in torch, or without any of them the artifact that was written last here.

    With a `prompt` also up to `new` tokens of the answer. `tell` is called as `Progress` of the command line is.
    Everything that can be refused is refused before anything runs: ImageError, ArtifactError, ModelError for columns
    that see images differently, MethodError, BudgetError, and what the runtimes raise.
    """
    picture = open_image(image)
    opened = [read_artifact(one) for one in artifacts or ([] if methods else [last()])]
    names = _names([one.manifest.method.name for one in opened] + list(methods), opened)
    views: list[View] = [
        (load_image_processor(one.processor), one.manifest.geometry.vision.grid, str(one.directory)) for one in opened
    ]
    makings = [_of(one, name, picture, prompt, runtime, new) for one, name in zip(opened, names, strict=False)]
    if methods:
        tried = _model(model)
        views.append((tried.processor, tried.geometry.vision.grid, model))
        for method in methods:
            tried.plan(method, tokens)
            makings.append(_tried(tried, method, tokens, picture, prompt, new))
    processor, grid = _one_view(views)
    seen = processor.seen(*picture.size)
    columns = []
    for place, make in enumerate(makings):
        if tell is not None:
            tell("looking", place, len(makings))
        columns.append(make())
    look = Look(image=str(image), size=picture.size, seen=seen, grid=grid, prompt=prompt, columns=tuple(columns))
    return look, picture


def _names(kinds: Sequence[str], opened: Sequence[Artifact]) -> list[str]:
    """What every column is called: its method, or the artifact's directory where several have that method."""
    several = {kind for kind, count in Counter(kinds).items() if count > 1}
    names = [one.directory.name if kind in several else kind for one, kind in zip(opened, kinds, strict=False)] + list(
        kinds[len(opened) :]
    )
    twice = next((name for name, count in Counter(names).items() if count > 1), None)
    if twice is not None:
        raise MethodError(f"{twice} would be shown twice; name every method and every artifact once")
    return names


def _model(name: str) -> "Model":
    from tokcarve.exporters.pictures.carved import Model

    return Model(name)


def _of(
    artifact: Artifact, name: str, image: Image.Image, prompt: str | None, runtime: Literal["ort", "torch"], new: int
) -> Making:
    def make() -> Column:
        if runtime == "torch":
            from tokcarve.exporters.pictures.carved import of_artifact

            return of_artifact(artifact, name, image, prompt, new)
        from tokcarve.exporters.pictures.exported import of_export

        return of_export(artifact, name, image, prompt or PROMPT, new, asked=prompt is not None)

    return make


def _tried(model: "Model", method: str, tokens: int | None, image: Image.Image, prompt: str | None, new: int) -> Making:
    return lambda: model.column(method, tokens, image, prompt, new)


def _one_view(views: Sequence[View]) -> tuple[ImageProcessor, tuple[int, int]]:
    """What all columns do to an image; ModelError where two differ, for their patches are not of the same places."""
    processor, grid, whose = views[0]
    for other, cells, name in views[1:]:
        if cells != grid or _geometry(other) != _geometry(processor):
            raise ModelError(
                f"{name} cuts images into {cells[0]} x {cells[1]} patches in another way than {whose} "
                f"({grid[0]} x {grid[1]}), so their patches cannot be compared; show them apart"
            )
    return processor, grid


def _geometry(processor: ImageProcessor) -> tuple[object, ...]:
    return processor.pad_square, processor.shortest_edge, processor.resize_to, processor.crop_to
