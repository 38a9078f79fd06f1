"""The face for Hugging Face runtimes: the graphs that transformers.js looks for, and the processor's files beside them.

The stock processor, of transformers or of transformers.js, writes as many image tokens as are left; whoever runs the
graphs puts visual token j where the j-th of them stands, and numbers all rows one by one. What is dropped in the
language model leaves zeros in the cache, for its runtimes have one length for all layers: computing is saved, memory is
not.
"""

from collections.abc import Iterator
from typing import ClassVar

from tokcarve.exporters import verify
from tokcarve.exporters.columns import columned_vision, columns
from tokcarve.exporters.device.compare import Check
from tokcarve.exporters.device.merging import EMBEDDING, TEXT, VISION, check_merging
from tokcarve.exporters.faces.hf_files import write_hf_files
from tokcarve.exporters.faces.kind import FaceKind, Proof, Request, Work
from tokcarve.exporters.golden import asked, said
from tokcarve.exporters.growing import growing_text, token_embedding
from tokcarve.exporters.marked import marked_text
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
        if graphs.asks or graphs.gives:
            return (
                f"face hf: its runtimes keep no state between images, and {manifest.method.name} takes or gives "
                f"{', '.join((*graphs.asks, *graphs.gives))}; use ort or trt"
            )
        if graphs.language_inputs and source.largest.sizes.batch > 1:
            return (
                f"face hf: its runtimes pad the prompts of a batch, and {manifest.method.name} drops tokens in the "
                "language model, where these graphs know no padding; use --batch 1, or ort"
            )
        return None

    def pieces(self, source: Source) -> Iterator[tuple[str, FaceGraph]]:
        """pixel_values -> image_features; input_ids -> inputs_embeds; the language model with a growing cache.

        A method in the language model has to know where the image is: rows carry columns that say so.
        """
        one, batch = source.largest, source.largest.sizes.batch
        if not one.graphs.language_inputs:
            yield VISION, face_graphs(one.graphs, one.sizes)["vision"]
            yield EMBEDDING, token_embedding(one.graphs, batch)
            yield TEXT, growing_text(one.graphs, batch)
            return
        wide = columns(one.graphs, void=0)
        yield VISION, columned_vision(one.graphs, one.sizes, wide)
        yield EMBEDDING, token_embedding(one.graphs, batch, more=wide.width - wide.hidden)
        yield TEXT, marked_text(one.graphs, wide, one.sizes)

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
