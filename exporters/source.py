"""What an export starts from: the model of an artifact, carved to each of its budgets and whole, with its constants."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn

from tokcarve.exporters.device.face import ROUTER, graph_file
from tokcarve.exporters.golden import NEW_TOKENS, Golden, make_samples, reference
from tokcarve.exporters.modules import FaceGraph, Shapes, face_graphs, shapes
from tokcarve.exporters.precision import PRECISIONS, Precision
from tokcarve.exporters.quantise import matrices, round_weights
from tokcarve.passes.families import capture
from tokcarve.passes.families.blank import Stored, blank_model
from tokcarve.passes.families.load import read_model
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.router import Router
from tokcarve.recipes.artifact import Artifact
from tokcarve.recipes.carve import carve, router_of, whole

__all__ = ["Carved", "Reading", "Source", "load_source", "read_source"]

# golden samples, or one batch alone where a model has so many weights that each would take minutes
_SAMPLES, _LARGE = 4, 500_000_000


@dataclass(frozen=True, kw_only=True)
class Carved:
    """One side to export: its graphs and constants; `budget` is its count, None for the whole model."""

    graphs: TokenGraphs
    sizes: Shapes
    budget: int | None


@dataclass(frozen=True, kw_only=True)
class Source:
    """A model to export: carved to its budgets, the largest first, and whole; and the router of a set.

    Its large weights are blank, in the dtype of `precision`: `stored` says by address what belongs there, `matrices`
    which of them are quantised.
    """

    artifact: Artifact
    model: nn.Module
    stored: Mapping[int, Stored]
    carved: tuple[Carved, ...]
    plain: Carved
    router: Router | None
    precision: Precision = PRECISIONS["fp32"]

    @property
    def largest(self) -> Carved:
        """The budget that an artifact describes first, or its only one."""
        return self.carved[0]

    @property
    def weights(self) -> int:
        """How many numbers all weights are."""
        return sum(weight.numel() for weight in self.model.parameters())

    @property
    def sampled(self) -> int:
        """How many samples are worth their time; a whole batch is run in any case."""
        return _SAMPLES if self.weights < _LARGE else 1

    @property
    def named(self) -> dict[str, Tensor]:
        """The model's own tensors, as the checkpoint calls them."""
        return dict((*self.model.named_parameters(), *self.model.named_buffers()))

    @property
    def matrices(self) -> frozenset[int]:
        """Addresses of the weights that are quantised; none where the precision quantises none."""
        return matrices(self.plain.graphs.parts.text_blocks) if self.precision.bits else frozenset()

    def pieces(self) -> Iterator[tuple[str, FaceGraph]]:
        """Every graph of the face with its file name, in order."""
        for one in (*self.carved, self.plain):
            for name, piece in face_graphs(one.graphs, one.sizes).items():
                further = one.budget if one is not self.largest else None
                yield graph_file(name, baseline=one is self.plain, budget=further), piece
        if self.router is not None:
            side = self.plain.graphs.geometry.vision.image_size
            yield (
                graph_file(ROUTER),
                FaceGraph(
                    module=self.router,
                    inputs=(torch.zeros(self.plain.sizes.batch, 3, side, side),),
                    input_names=("pixel_values",),
                    output_names=("losses",),
                ),
            )


def load_source(artifact: Artifact, *, batch: int, max_text: int, max_new: int, precision: Precision) -> Source:
    """The model of `artifact`, its large weights blank, for prompts and answers of these sizes."""
    blank = blank_model(artifact.open_base(), dtype=precision.dtype)

    def side(graphs: TokenGraphs, budget: int | None) -> Carved:
        sizes = shapes(graphs, batch=batch, max_text=max_text, max_new=max_new)
        return Carved(graphs=graphs, sizes=sizes, budget=budget)

    counts = reversed(artifact.manifest.counts)
    return Source(
        artifact=artifact,
        model=blank.model,
        stored=blank.stored,
        carved=tuple(side(carve(blank.model, artifact, count).graphs, count) for count in counts),
        plain=side(whole(blank.model, artifact), None),
        router=router_of(blank.model, artifact),
        precision=precision,
    )


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The model of a source with all of its weights in float32, quantised ones as they are then read, for what torch
    makes of samples; `rounded` is the same model in the dtype of the graphs where that is another."""

    source: Source
    model: nn.Module
    rounded: nn.Module | None
    router: Router | None

    def unrounded(self) -> nn.Module:
        """The model in float32 with the checkpoint's own weights; read again where these are quantised."""
        path = self.source.artifact.open_base().path
        return read_model(path) if self.source.precision.bits else self.model

    def golden(self, side: Carved) -> Golden:
        """Samples for one budget, and what torch makes of them there and in the whole model."""
        artifact, batch, sizes = self.source.artifact, side.sizes.batch, side.sizes
        carved, plain = carve(self.model, artifact, side.budget).graphs, whole(self.model, artifact)
        rounded = None if self.rounded is None else carve(self.rounded, artifact, side.budget).graphs
        count = batch * max(1, self.source.sampled // batch)
        samples, skipped = make_samples(carved, rounded, count=count, max_text=sizes.prompt - sizes.tokens)
        # after eight ambiguous images in a row one is taken untested: what float32 decides of it has to be known
        swaying = rounded or (carved if skipped else None)
        new = min(NEW_TOKENS, sizes.max_new)
        return Golden(
            samples=samples,
            pruned=tuple(reference(carved, sample, new, swaying) for sample in samples),
            plain=tuple(reference(plain, sample, new) for sample in samples),
            skipped=skipped,
        )


def read_source(source: Source) -> Reading | str:
    """The model with its weights, or why this machine does not read it: too little memory for it twice, in torch and in
    ONNX Runtime, both of which compute in float32 on a CPU, and in torch as it is exported."""
    precision = source.precision
    each = 8.8 + (precision.dtype.itemsize if precision.dtype != torch.float32 else 0)
    needed, free = int(each * source.weights), psutil.virtual_memory().available
    if needed > free:
        return f"{needed / 2**30:.1f} GiB of memory are needed to run it twice, and {free / 2**30:.1f} GiB are free"
    path, rounded = source.artifact.open_base().path, None
    model = read_model(path)
    if precision.dtype != torch.float32:
        rounded = read_model(path, dtype=precision.dtype)
    for one in (model, rounded):
        if precision.bits and one is not None:
            round_weights(capture(one).parts.text_blocks, precision.bits)
    return Reading(source=source, model=model, rounded=rounded, router=router_of(model, source.artifact))
