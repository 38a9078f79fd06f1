"""The graphs of an export and the one weight file that they share, on their way to the disk."""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch

from tokcarve.exporters.device.face import WEIGHTS, FaceFile, StoredTensor
from tokcarve.exporters.faces.kind import Request
from tokcarve.exporters.forked import lower_piece
from tokcarve.exporters.graph_file import GraphFile, graph_file_of
from tokcarve.exporters.limits import check_room
from tokcarve.exporters.modules import FaceGraph
from tokcarve.exporters.onnx import weight_names
from tokcarve.exporters.quantise import Quantiser
from tokcarve.exporters.sizes import header_bytes, predict
from tokcarve.exporters.source import Source
from tokcarve.exporters.weights import WeightFile
from tokcarve.passes.errors import ExportError
from tokcarve.passes.families.blank import DTYPES

__all__ = ["Progress", "Written", "check_headers", "lowered", "write_graphs"]

Progress = Callable[[str, int, int], None]

_CACHED = 1 << 30
"""Bytes of a weight file that may well stay in memory for the proof; of a larger one the checkpoint should."""


@dataclass(frozen=True, kw_only=True)
class Written:
    """Graphs, what the weight file holds by name, the file itself, and its size in bytes as it was `predicted` before
    it was begun."""

    graphs: tuple[GraphFile, ...]
    tensors: dict[str, StoredTensor]
    weights: FaceFile
    predicted: int


def check_headers(source: Source, directory: Path, *, refer: bool) -> None:
    """What headers tell before anything is traced: ExportError where the disk of `directory` cannot hold the weights of
    a whole checkpoint or, with `refer`, where none of them is of the dtype that graphs read."""
    if not refer:
        check_room(header_bytes(source.stored, source.matrices, source.precision), directory)
    elif source.precision.dtype not in {DTYPES[one.entry.dtype] for one in source.stored.values()}:
        raise _nothing_stays(source)


def write_graphs(
    source: Source, request: Request, pieces: Mapping[str, FaceGraph], folder: Path, tell: Progress
) -> Written:
    """Writes every piece under its name into `folder`, in an ONNX `opset`.

    Weights go one by one from the checkpoint into one file.

    All graphs are made first, without a weight being read, so that the size of the file is known before it is begun.
    Raises ExportError for a disk that is too small, what cannot be traced, numbers that the precision cannot hold and,
    where they are to stay in the checkpoint's files, weights of which none can.
    """
    refer = request.reference_weights
    made = list(lowered(source, request, pieces, tell))
    models = [model for _, model, _ in made]
    predicted = predict(models, source.named, source.stored, source.precision, refer=refer)
    check_room(predicted, folder)
    written = []
    with _one_thread(), WeightFile(folder / WEIGHTS, source.stored, refer=refer, direct=predicted > _CACHED) as weights:
        for done, (name, model, seconds) in enumerate(made):
            tell("writing graphs", done, len(made))
            started = time.perf_counter()
            size = weights.save(model, folder / name)
            written.append(graph_file_of(name, model, size, seconds + time.perf_counter() - started))
        tensors, whole = weights.tensors, weights.record
    if refer and not weights.referred:
        raise _nothing_stays(source)
    return Written(graphs=tuple(written), tensors=tensors, weights=whole, predicted=predicted)


def lowered(
    source: Source, request: Request, pieces: Mapping[str, FaceGraph], tell: Progress
) -> Iterator[tuple[str, ir.Model, float]]:
    """Every piece as a graph whose weights were not read yet, and the seconds that it took."""
    names = weight_names(source.model)
    table = names.get(source.largest.graphs.parts.embed_tokens.weight.data_ptr(), "")  # type: ignore[operator]
    as_stored = names.values() if request.reference_weights else (table,)
    quantiser = Quantiser(source.plain.graphs.parts.text_blocks, source.precision, source.stored)
    for done, (name, piece) in enumerate(pieces.items()):
        tell("making graphs", done, len(pieces))
        started = time.perf_counter()
        model = lower_piece(piece, names=names, as_stored=as_stored, opset=request.opset)
        quantiser.apply(model)
        yield name, model, time.perf_counter() - started


def _nothing_stays(source: Source) -> ExportError:
    kinds = {str(DTYPES[one.entry.dtype]).removeprefix("torch.") for one in source.stored.values()}
    return ExportError(
        f"--reference-weights: no weight of the checkpoint ({' and '.join(sorted(kinds))}) is what the export reads "
        f"({source.precision.computes}), so all must be converted; leave the option out, or give the --precision that "
        "the checkpoint has"
    )


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """While it lasts, torch leaves the other processors to what sums up and writes: turning and rounding some MiB at a
    time waits for memory, and threads that wait for the next piece take as much time again."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
