"""Makes the graphs of `export/sweep/`: other token counts and batches than were exported, over the same weights.

The model is traced again without its weights. Every weight of a new graph has its place in the weight file already, by
its name in the exported graph of the same kind, so that only kilobytes are written; other constants stay in the graph.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import onnx_ir as ir

from tokcarve.exporters.device.face import EXPORT, FOLDER, ExportRecord, file_record, graph_file, read_export
from tokcarve.exporters.device.scratch import SWEEP, SWEEP_RECORD, SweepRecord, read_sweep
from tokcarve.exporters.faces.kind import Request
from tokcarve.exporters.limits import check_request
from tokcarve.exporters.modules import FaceGraph, face_graphs, shapes
from tokcarve.exporters.precision import precision_of
from tokcarve.exporters.source import Source, load_source
from tokcarve.exporters.tensors import SMALL, address
from tokcarve.exporters.writing import Progress, lowered
from tokcarve.passes.errors import ExportError
from tokcarve.recipes.artifact import Artifact
from tokcarve.recipes.atomic import copy_file, replace_directory, write_file

__all__ = ["make_scratch"]


def make_scratch(
    artifact: Artifact, *, tokens: Sequence[int] = (), batches: Sequence[int] = (), progress: Progress | None = None
) -> SweepRecord:
    """What `artifact`'s export has after the graphs for these token counts and batches were added that it lacked.

    All are there when it returns, or those that were before. Raises ModelError where the checkpoint is gone,
    ExportError for counts that the model cannot serve or weights that the export does not hold, ArtifactError for a
    full disk.
    """
    record, place = read_export(artifact.directory), artifact.directory / EXPORT / SWEEP
    known = read_sweep(artifact.directory, record)
    counts = [count for count in dict.fromkeys(tokens) if count not in known.tokens]
    sizes = [batch for batch in dict.fromkeys(batches) if batch not in (*known.batches, record.batch)]
    if not counts and not sizes:
        return known
    wrong = [count for count in counts if not 1 <= count <= record.total]
    if wrong:
        raise ExportError(f"{wrong[0]} tokens cannot be swept: the model has {record.total}; give 1..{record.total}")
    for batch in sizes:
        check_request(artifact.manifest, _request(record, batch))
    tell = progress if progress is not None else lambda what, done, total: None
    with replace_directory(place) as folder:
        for name in known.files:
            copy_file(place / name, folder / name)
        for name, model in _graphs(artifact, record, counts, sizes, tell):
            ir.save(model, folder / name)
        made = SweepRecord(
            export=record.digest,
            tokens=tuple(sorted({*known.tokens, *counts})),
            batches=tuple(sorted({*known.batches, *sizes})),
            files={path.name: file_record(path) for path in sorted(folder.glob("*.onnx"))},
        )
        write_file(folder / SWEEP_RECORD, made.model_dump_json(indent=2) + "\n")
    return made


def _request(record: ExportRecord, batch: int) -> Request:
    """What this export was asked for, with another batch, as far as graphs depend on it."""
    refer = any(name.startswith(f"{FOLDER}/") and name.endswith(".safetensors") for name in record.files)
    return Request(
        batch=batch,
        max_text=record.max_text,
        max_new=record.max_new,
        reference_weights=refer,
        opset=record.opset,
        precision=record.precision,
    )


def _graphs(
    artifact: Artifact, record: ExportRecord, counts: Sequence[int], sizes: Sequence[int], tell: Progress
) -> Iterator[tuple[str, ir.Model]]:
    """Every new graph under its file name, its weights where the export has them."""
    for batch in ([record.batch] if counts else []) + list(sizes):
        request = _request(record, batch)
        source = load_source(
            artifact,
            batch=batch,
            max_text=record.max_text,
            max_new=record.max_new,
            precision=precision_of(record.precision, refer=request.reference_weights),
        )
        pieces = _of_tokens(source, counts) if batch == record.batch else _of_batch(source)
        for name, model, _ in lowered(source, request, pieces, tell):
            known = artifact.directory / EXPORT / FOLDER / name.split(".", 2)[2]
            _relate(model, known, source)
            yield name, model


def _of_tokens(source: Source, counts: Sequence[int]) -> dict[str, FaceGraph]:
    plain, base = source.plain.graphs, source.plain.sizes
    text = base.prompt - base.tokens
    made = {}
    for count in counts:
        sizes = shapes(plain, batch=base.batch, max_text=text, max_new=base.max_new, tokens=count)
        name = graph_file("prefill", baseline=True)
        made[f"tokens.{count}.{name}"] = face_graphs(plain, sizes)["prefill"]
    return made


def _of_batch(source: Source) -> dict[str, FaceGraph]:
    """Both sides for the batch of `source`; of a set its largest budget."""
    alone = replace(source, carved=source.carved[:1], router=None)
    return {f"batch.{source.plain.sizes.batch}.{name}": piece for name, piece in alone.pieces()}


def _relate(model: ir.Model, known: Path, source: Source) -> None:
    """Makes the weights of `model` those of the exported graph in `known`, by name; nothing is read."""
    exported = ir.load(known).graph.initializers
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is None or tensor.nbytes < SMALL:
            continue
        there = exported[name].const_value if name in exported else None
        if isinstance(there, ir.ExternalTensor) and there.dtype == tensor.dtype and there.shape == tensor.shape:
            value.const_value = ir.ExternalTensor(
                there.location,
                there.offset,
                there.length,
                there.dtype,
                shape=there.shape,
                name=name,
                base_dir=known.parent,
            )
        elif address(tensor) in source.stored:
            raise ExportError(
                f"weight {name!r} of the checkpoint is not in {known} as it is needed for another shape; export again "
                "with this version (`tokcarve export --force`), then sweep"
            )
