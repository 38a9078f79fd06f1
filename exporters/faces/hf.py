"""The face for Hugging Face runtimes: the graphs that transformers.js looks for, and the processor's files beside them.

The stock processor, of transformers or of transformers.js, writes as many image tokens as are left; whoever runs the
graphs puts visual token j where the j-th of them stands. So tokens must be dropped before the language model, and be
numbered one by one.
"""

from collections.abc import Iterator
from typing import ClassVar

from tokcarve.exporters import verify
from tokcarve.exporters.device.compare import Check
from tokcarve.exporters.device.merging import EMBEDDING, TEXT, VISION, check_merging
from tokcarve.exporters.faces.hf_files import write_hf_files
from tokcarve.exporters.faces.kind import FaceKind, Proof, Request, Work
from tokcarve.exporters.golden import asked, said
from tokcarve.exporters.growing import growing_text, token_embedding
from tokcarve.exporters.modules import FaceGraph, face_graphs
from tokcarve.exporters.source import Source
from tokcarve.exporters.stock_processor import check_processor
from tokcarve.recipes.artifact import Artifact

__all__ = ["Hf"]


class Hf(FaceKind):
    """Graphs, configuration and processor as Hugging Face runtimes name them."""

    name: ClassVar[str] = "hf"
    about: ClassVar[str] = "graphs and processor as Hugging Face runtimes and transformers.js name them"

    def refuses(self, artifact: Artifact, request: Request) -> str | None:
        """These runtimes feed and take float32."""
        if request.precision == "fp32":
            return None
        return f"face hf is written in fp32 alone, and --precision is {request.precision}; use ort or trt for that"

    def cannot(self, source: Source) -> str | None:
        """Methods that work where these runtimes have no place for it."""
        graphs, manifest = source.largest.graphs, source.artifact.manifest
        if source.router is not None:
            return "face hf: the processor writes one number of image tokens, and this artifact has several; use ort"
        if manifest.positions == "original":
            return (
                "face hf: its runtimes number the tokens of a prompt one by one, and this artifact keeps original "
                "positions; compress with --positions renumbered, or use ort or trt"
            )
        if graphs.reads_text:
            return (
                f"face hf: its runtimes show the question to the language model alone, and {manifest.method.name} "
                "chooses by it before; use ort or trt"
            )
        inside = [stage.site for stage in manifest.schedule if stage.site.startswith("language")]
        if inside or graphs.asks or graphs.gives:
            return (
                f"face hf: its runtimes keep one cache length for all layers, and {manifest.method.name} works in the "
                "language model; use ort or trt"
            )
        return None

    def pieces(self, source: Source) -> Iterator[tuple[str, FaceGraph]]:
        """pixel_values -> image_features; input_ids -> inputs_embeds; the language model with a growing cache."""
        one, batch = source.largest, source.largest.sizes.batch
        yield VISION, face_graphs(one.graphs, one.sizes)["vision"]
        yield EMBEDDING, token_embedding(one.graphs, batch)
        yield TEXT, growing_text(one.graphs, batch)

    def complete(self, work: Work) -> None:
        """Configuration and processor, beside the folder of graphs."""
        write_hf_files(work, work.source.largest.sizes.tokens)

    def prove(self, work: Work) -> Proof:
        """The graphs in a loop of our own against torch, and the stock processor."""
        one, checks, left = work.source.largest, list[Check](), ["transformers.js was not run on face hf"]
        if work.goldens:
            golden = work.goldens[0][1]
            asked_of = [asked(sample) for sample in golden.samples]
            checks += check_merging(work.root, work.draft, asked_of, said(golden.pruned))
        own = work.source.artifact.processor
        checks += check_processor(work.directory, own, work.draft.geometry, one.sizes.tokens)
        verify.require(checks)
        return Proof(checks=tuple(checks), not_checked=tuple(left))
