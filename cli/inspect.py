"""`tokcarve inspect`: the graph before and after, stages, schedule, and the three token numbers."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tokcarve.cli.compress import manifest_facts, print_schedule
from tokcarve.cli.output import emit_json, print_facts, print_line, print_table
from tokcarve.cli.sets import print_set

if TYPE_CHECKING:
    from tokcarve.passes.describe import NodeRow

__all__ = ["inspect"]


def inspect(
    artifact: Annotated[Path | None, typer.Argument(help="The last one written here unless told.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Show what was done to a model: its graph before and after, schedule, and token numbers."""
    from tokcarve.recipes.artifact import last, read_artifact

    found = read_artifact(artifact if artifact is not None else last())
    base = found.open_base()

    from tokcarve.passes import families
    from tokcarve.passes.describe import describe_language, describe_vision
    from tokcarve.passes.families.load import read_config
    from tokcarve.recipes.carve import carve

    model = families.empty(read_config(base.path))
    before, after = families.capture(model), carve(model, found).graphs
    graphs = {
        "vision": {"before": describe_vision(before), "after": describe_vision(after)},
        "language": {"before": describe_language(before), "after": describe_language(after)},
    }
    if as_json:
        plain = {
            part: {when: [asdict(row) for row in rows] for when, rows in both.items()} for part, both in graphs.items()
        }
        fields = {"artifact": str(found.directory), "manifest": found.manifest.model_dump(mode="json"), "graphs": plain}
        emit_json("inspect", fields)
        return
    print_facts(str(found.directory), manifest_facts(found.manifest))
    print_schedule(found.manifest)
    print_set(found.manifest)
    print_table("vision graph", ("node", "kind", "before", "after"), _side_by_side(**graphs["vision"]))
    whole, carved = graphs["language"]["before"], graphs["language"]["after"]
    if whole != carved:
        print_table("language graph", ("node", "kind", "before", "after"), _side_by_side(whole, carved))
    rows = found.manifest.kv_rows
    print_line(f"language graph: {len(carved)} nodes, visual rows per layer {_runs(rows)}")


def _side_by_side(before: "list[NodeRow]", after: "list[NodeRow]") -> list[tuple[Any, ...]]:
    """Every node of `after`, with its shape in `before`; a node that only `after` has is marked."""
    shapes = {row.name: _shape(row) for row in before}
    return [(row.name, row.kind, shapes.get(row.name, "+ new"), _shape(row)) for row in after]


def _shape(row: "NodeRow") -> str:
    return "" if row.shape is None else " x ".join(str(extent) for extent in row.shape)


def _runs(rows: tuple[int, ...]) -> str:
    """64, 64, 64, 16 as "64 (3 layers), 16 (1)"."""
    runs: list[list[int]] = []
    for count in rows:
        if runs and runs[-1][0] == count:
            runs[-1][1] += 1
        else:
            runs.append([count, 1])
    return ", ".join(f"{count} ({layers} layers)" if layers > 1 else f"{count} (1 layer)" for count, layers in runs)
