"""`tokcarve compare`: two artifacts side by side.

`--json`: a and b, each {artifact, model, weights_identity, weights_bytes, method, budget, positions, schedule, numbers,
kv_rows, flops {encoder, connector, prefill, decode, conventions} beside 64 rows of text, export {faces, precision,
dtype, batch, max_text, max_new, target, bytes by folder} or null, profile and evaluation: what ARTIFACT/profile.json
and ARTIFACT/evaluation/evaluation.json hold, or null}; overlap {samples (which they are), jaccard (of the kept patches,
one per sample), mean, why (none could be told, else null)}; warnings, sentences.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokcarve.cli.output import emit_json, print_line, print_table

if TYPE_CHECKING:
    from tokcarve.exporters.device.side_by_side import Comparison, Entry

__all__ = ["compare"]

_STAGES = ("encoder", "prefill", "decode", "first_token", "end_to_end")


def compare(
    a: Annotated[Path, typer.Argument(help="An artifact.")],
    b: Annotated[Path, typer.Argument(help="Another one.")],
    anyway: Annotated[bool, typer.Option("--anyway", help="Also where they are made of different models.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Put two artifacts side by side: methods, costs, exports, kept patches, and saved results."""
    from tokcarve.exporters.device.side_by_side import compare_artifacts

    found = compare_artifacts(a, b, anyway=anyway)
    if as_json:
        emit_json("compare", found.record())
    else:
        _print(found)


def _print(found: "Comparison") -> None:
    first, second = found.entries
    rows = [(name, *cells) for name, cells in _facts(first, second).items() if any(cell for cell in cells)]
    places = [entry.artifact.directory for entry in found.entries]
    names = {place.name for place in places}
    print_table("two artifacts", ("", *(place.name if len(names) > 1 else str(place) for place in places)), rows)
    overlap = found.overlap
    if overlap.mean is None:
        print_line(f"kept patches: not compared, {overlap.why}.")
    else:
        low, high = min(overlap.jaccard), max(overlap.jaccard)
        spread = f"{overlap.mean:.2f} ({low:.2f} to {high:.2f})"
        print_line(f"kept patches: Jaccard {spread} on {len(overlap.jaccard)} {overlap.of}.")
    for warning in found.warnings:
        print_line(f"warning: {warning}.")


def _facts(first: "Entry", second: "Entry") -> dict[str, tuple[str, str]]:
    one, other = _facts_of(first), _facts_of(second)
    return {
        name: (one.get(name, ""), other.get(name, "")) for name in [*one, *(key for key in other if key not in one)]
    }


def _facts_of(entry: "Entry") -> dict[str, str]:
    manifest, flops = entry.artifact.manifest, entry.flops
    params = ", ".join(f"{name}={value}" for name, value in manifest.method.params.items())
    numbers = manifest.numbers
    return {
        "model": manifest.model.name,
        "weights": f"{entry.weights / 2**20:.1f} MiB",
        "method": manifest.method.name + (f" ({params})" if params else ""),
        "visual tokens": f"{manifest.budget.tokens} of {manifest.budget.total}",
        "schedule": ", ".join(f"{stage.keep} after {stage.site}" for stage in manifest.schedule) or "no reduction",
        "entering": str(numbers.tokens_entering),
        "mean over layers": f"{numbers.tokens_mean:.4g}",
        "KV MiB": f"{numbers.kv_mib:.3f}",
        **{f"{part} GFLOP": f"{flops[part] / 1e9:.4g}" for part in ("encoder", "prefill", "decode")},
        **_exported(entry),
        **_saved(entry),
    }


def _exported(entry: "Entry") -> dict[str, str]:
    export, files = entry.export, entry.files
    if export is None or files is None:
        return {"export": "none"}
    sizes = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in files.items())
    return {
        "faces": ", ".join(export.faces),
        "computes in": export.precision,
        "room for": f"batch {export.batch}, {export.max_text} text, {export.max_new} new",
        "export MiB": sizes,
    }


def _saved(entry: "Entry") -> dict[str, str]:
    """Medians and scores that were kept in the artifact, as far as they are what such records hold."""
    found = {}
    for name in _STAGES:
        median = _at(entry.profile, "stages", name, "pruned", "p50_ms")
        if isinstance(median, int | float):
            found[f"{name.replace('_', ' ')} ms"] = f"{median:.4g}"
    for side in ("pruned", "unpruned"):
        score = _at(entry.evaluation, "sides", side, "score")
        if isinstance(score, int | float):
            found[f"score, {side}"] = f"{score:.1%}"
    return found


def _at(record: Any, *keys: str) -> Any:
    for key in keys:
        record = record.get(key) if isinstance(record, dict) else None
    return record
