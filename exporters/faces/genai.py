"""The face for onnxruntime-genai as it is installed: three graphs with one growing cache, and the files beside them.

Its model type `videochat_flash_qwen` takes the number of visual tokens from its configuration. Everything else that the
runtime cannot be told is in the graphs: how an image is prepared, where it is, what is dropped behind which layer.
"""

from collections.abc import Iterator
from typing import ClassVar

from tokcarve.exporters import verify
from tokcarve.exporters.columns import columns
from tokcarve.exporters.device.compare import Check
from tokcarve.exporters.device.growing import EMBEDDING, TEXT, VISION
from tokcarve.exporters.device.photographs import check_photographs
from tokcarve.exporters.faces.genai_files import START, marks, write_genai_files
from tokcarve.exporters.faces.genai_golden import write_photographs
from tokcarve.exporters.faces.genai_tokenizer import read_otherwise
from tokcarve.exporters.faces.kind import FaceKind, Proof, Request, Work
from tokcarve.exporters.marked import VOID, marked_embedding, marked_text, marked_vision
from tokcarve.exporters.modules import FaceGraph
from tokcarve.exporters.prepare import Prepare, unpreparable
from tokcarve.exporters.source import Source
from tokcarve.passes.inputs.images import load_image_processor
from tokcarve.passes.inputs.prompt import load_prompter
from tokcarve.recipes.artifact import Artifact

__all__ = ["Genai"]


class Genai(FaceKind):
    """What the stock onnxruntime-genai runs."""

    name: ClassVar[str] = "genai"
    about: ClassVar[str] = "what the stock onnxruntime-genai runs, in-language methods too"

    def refuses(self, artifact: Artifact, request: Request) -> str | None:
        """It is written for one prompt at a time, in float32."""
        if request.batch > 1:
            return f"face genai answers one prompt at a time, and --batch is {request.batch}; use ort for more"
        if request.precision != "fp32":
            return f"face genai is written in fp32 alone, and --precision is {request.precision}; use ort or trt"
        return None

    def cannot(self, source: Source) -> str | None:
        """What has no place in the runtime, or none in these graphs."""
        graphs, method = source.largest.graphs, source.artifact.manifest.method.name
        if source.router is not None:
            return "face genai: its runtime writes one number of visual tokens, and this artifact has several; use ort"
        if graphs.reads_text:
            return (
                f"face genai: its runtime shows the question to the language model alone, and {method} chooses by it "
                "before; use ort or trt"
            )
        if graphs.asks or graphs.gives:
            return (
                f"face genai: its runtime keeps no state between images, and {method} takes or gives "
                f"{', '.join((*graphs.asks, *graphs.gives))}; use ort or trt"
            )
        place, geometry = source.artifact.processor, graphs.geometry
        images = load_image_processor(place)
        reason, side = unpreparable(images), geometry.vision.image_size
        if reason is None and (images.crop_to or images.resize_to) != (side, side):
            reason = f"its images are not the {side} x {side} pixels that the vision tower reads"
        if reason is not None:
            return f"face genai: a graph cannot prepare images as this checkpoint's processor does: {reason}; use ort"
        prompter = load_prompter(place, geometry.image_token_id)
        if START in prompter.render("a"):
            return f"face genai: the chat template writes {START}, which stands for an image in the runtime; use ort"
        other = read_otherwise(place, prompter, geometry)
        return None if other is None else f"face genai: {other}; use hf, ort or trt"

    def pieces(self, source: Source) -> Iterator[tuple[str, FaceGraph]]:
        """Vision from raw pixels, the merge of text and image, and the language model."""
        one, place = source.largest, source.artifact.processor
        geometry, wide = one.graphs.geometry, columns(one.graphs, void=VOID)
        marked = marks(load_prompter(place, geometry.image_token_id), geometry)
        image = tuple(dict.fromkeys((geometry.image_token_id, marked.image)))
        yield VISION, marked_vision(one.graphs, wide, Prepare(load_image_processor(place)))
        yield EMBEDDING, marked_embedding(one.graphs, wide, image=image, void=(marked.start, marked.end))
        yield TEXT, marked_text(one.graphs, wide, one.sizes)

    def complete(self, work: Work) -> None:
        """Configuration, tokenizer and image decoding beside the graphs; then questions about image files."""
        one, place = work.source.largest, work.source.artifact.processor
        geometry = work.draft.geometry
        prompter = load_prompter(place, geometry.image_token_id)
        wide = columns(one.graphs, void=VOID).width
        write_genai_files(work.onnx, place, prompter, geometry, tokens=one.sizes.tokens, width=wide)
        write_photographs(work, prompter)

    def prove(self, work: Work) -> Proof:
        """The graphs in a loop of our own and in the stock runtime, both asked about image files, against torch."""
        checks, left = list[Check](), list[str]()
        if work.goldens:
            checks, left = check_photographs(work.directory, work.draft)
            verify.require(checks)
        return Proof(checks=tuple(checks), not_checked=tuple(left))
