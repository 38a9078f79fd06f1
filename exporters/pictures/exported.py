"""What an exported artifact keeps of one image, by its own graphs in ONNX Runtime: indices alone, and no torch."""

from collections.abc import Sequence

from PIL.Image import Image

from tokcarve.exporters.device.answer import Answerer
from tokcarve.exporters.device.face import check_origin, read_export
from tokcarve.exporters.device.route import route_in_ort
from tokcarve.exporters.pictures.kept import Column, Kept
from tokcarve.passes.inputs.images import load_image_processor
from tokcarve.recipes.artifact import Artifact
from tokcarve.recipes.manifest import StageEntry

__all__ = ["named_stages", "of_export"]

_NO_SCORES = "an export gives the patches that are kept, no scores; --runtime torch shows those"
_NO_EARLIER = "of the vision graph an export gives what leaves it, not the stages before"
_MERGED = "which patches a merged token stands for is not in an export; --runtime torch shows it"


def of_export(artifact: Artifact, name: str, image: Image, prompt: str, new: int | None, *, asked: bool) -> Column:
    """What the graphs of `artifact` keep of an image beside a prompt, and where it was `asked` for, their answer of up
    to `new` tokens; of a budget set the count that the router chooses.

    Raises ExportError without an export, ArtifactError for one that does not fit, PromptError for a prompt that does
    not fit or a method that keeps a state between images.
    """
    manifest = artifact.manifest
    check_origin(artifact.directory, read_export(artifact.directory), manifest)
    budget = None
    if manifest.router is not None:
        budget = route_in_ort(artifact.directory, load_image_processor(artifact.processor)([image]), None, None).tokens
    answerer = Answerer(artifact.directory, budget=budget)
    most = min(new, answerer.record.max_new) if new is not None else None
    made = answerer.answer([image], [prompt], most if asked else 1)
    schedule = manifest.schedule if budget is None else manifest.schedule_of(budget)
    stages = named_stages(schedule, {site: tuple(found[0].tolist()) for site, found in made.kept_by_site.items()})
    notes = [_NO_SCORES] if stages else []
    notes += [_NO_EARLIER] if any(stage.patches is None for stage in stages) else []
    notes += [_MERGED] if any(stage.how in ("merge", "resize") for stage in stages) else []
    return Column(
        name=name,
        method=manifest.method.name,
        runtime="ort",
        source=str(artifact.directory),
        tokens=manifest.budget.tokens if budget is None else budget,
        total=manifest.geometry.total,
        stages=stages,
        answer=made.text[0].strip() if asked else None,
        notes=tuple(notes),
    )


def named_stages(schedule: Sequence[StageEntry], kept: dict[str, tuple[int, ...]]) -> tuple[Kept, ...]:
    """The schedule with what the graphs gave: behind the vision graph under "", and by site of the language model."""
    before = [stage.site for stage in schedule if not stage.site.startswith("language.")]
    known = {(before[-1] if before and not site else site): patches for site, patches in kept.items()}
    found, now = list[Kept](), kept[""]
    for stage in schedule:
        patches = known.get(stage.site)
        if stage.how == "exit":
            patches = ()
        elif stage.how == "lean":
            patches = now
        now = patches if patches is not None else now
        found.append(Kept(site=stage.site, total=stage.total, keep=stage.keep, how=stage.how, patches=patches))
    return tuple(found)
