"""`tokcarve export`: an artifact into ONNX graphs for ONNX Runtime, proven against torch."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokcarve.cli.options import PRECISION, TARGET
from tokcarve.cli.output import checked_rows, emit_json, print_facts, print_line, print_table, progress_bars

if TYPE_CHECKING:
    from tokcarve.exporters.export import ExportResult

__all__ = ["export"]


def export(
    artifact: Annotated[Path | None, typer.Argument(help="The last one written here unless told.")] = None,
    batch: Annotated[int, typer.Option(help="Images per run, fixed in the graphs.")] = 1,
    max_text: Annotated[int, typer.Option(help="Most text tokens in a prompt.")] = 64,
    max_new: Annotated[int, typer.Option(help="Most tokens in an answer.")] = 64,
    face: Annotated[str, typer.Option(help="Layouts to write, with commas between them, or all.")] = "ort",
    trt: Annotated[
        bool, typer.Option("--trt", help="Also --face trt: check for TensorRT; build engines or the script.")
    ] = False,
    reference_weights: Annotated[
        bool, typer.Option("--reference-weights", help="Leave weights in the checkpoint's files where they fit.")
    ] = False,
    precision: PRECISION = "fp32",
    target: TARGET = None,
    opset: Annotated[int, typer.Option(help="ONNX opset of the graphs, 18 to 23.")] = 18,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing export.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Write an artifact as static ONNX graphs, and prove them against the model in torch."""
    from tokcarve.recipes.artifact import last

    place = artifact if artifact is not None else last()

    from tokcarve.exporters.export import export_artifact
    from tokcarve.exporters.faces.kind import Request

    names = [name.strip() for name in face.split(",")] + ["trt"] * trt
    request = Request(
        faces=tuple(dict.fromkeys(names)),
        batch=batch,
        max_text=max_text,
        max_new=max_new,
        reference_weights=reference_weights,
        precision=precision,
        opset=opset,
        target=target,
    )
    with progress_bars() as progress:
        result = export_artifact(place, request, force=force, progress=progress)
    if as_json:
        emit_json("export", _plain(result))
    else:
        _print(result, place)


def _plain(result: "ExportResult") -> dict[str, Any]:
    found = result.proofs.get("trt")
    trt = (
        None
        if found is None
        else {"said": found.said, "engines": [one.file for one in found.engines], "script": found.script}
    )
    return {
        "directory": str(result.directory),
        "seconds": round(result.seconds, 2),
        "weight_bytes": result.weight_bytes,
        "graphs": [asdict(graph) for graph in result.graphs],
        "trt": trt,
        "record": result.record.model_dump(mode="json"),
    }


def _print(result: "ExportResult", place: Path) -> None:
    from tokcarve.exporters.device.boards import find_target
    from tokcarve.exporters.device.session import STATIC

    record = result.record
    facts = {
        "shapes": f"batch {record.batch}, {record.pruned.tokens} of {record.total} visual tokens, up to "
        f"{record.max_text} text tokens and {record.max_new} new ones{'' if record.open else ', all constant'}",
        "budgets": f"{', '.join(map(str, record.counts))} tokens, by router.onnx" if record.counts else None,
        "format": f"ONNX opset {record.opset}, {record.dtype}{_weights_of(record.precision)}",
        "weights": _weights(result),
        "time": f"{result.seconds:.1f} s",
        "faces": ", ".join(record.faces),
        "target": str(find_target(record.target)) if record.target is not None else None,
        **{name: proof.said for name, proof in result.proofs.items()},
        **{f"no {name}": why for name, why in record.refused.items()},
        "not checked": "; ".join(record.not_checked) or None,
    }
    print_facts(str(result.directory), facts)
    rows = [(g.name, g.nodes, g.selection_nodes, g.graph_bytes / 1024, g.weight_bytes / 2**20) for g in result.graphs]
    if record.quality is not None:
        said = f"beside the whole model in fp32, {record.quality.tokens} tokens of {record.quality.samples} answers"
        agreed = [(row.graphs, f"{100 * row.agreement:.1f} %", f"{row.kl:.4f}") for row in record.quality.rows]
        print_table(said, ("model", "same token", "divergence in nats"), agreed)
    print_table("graphs", ("file", "nodes", "of selection", "KiB", "reads MiB of weights"), rows)
    print_table(
        "checks, all passed", ("check", "found"), checked_rows([(check.name, check.detail) for check in record.checks])
    )
    if STATIC & set(record.faces):
        print_line(f"next: tokcarve run {place} --image IMAGE --prompt TEXT, or tokcarve profile {place}")


def _weights_of(precision: str) -> str:
    return f" with {precision} weights in the language model" if precision.startswith("int") else ""


def _weights(result: "ExportResult") -> str:
    said = f"onnx/weights.data, {result.weight_bytes / 2**20:.1f} MiB, shared by all graphs"
    shards = [name for name in result.record.files if name.endswith(".safetensors") and name.startswith("onnx/")]
    return f"{said}; the rest stays in the checkpoint's {', '.join(shards)} (hard links)" if shards else said
