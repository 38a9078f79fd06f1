"""`tokcarve verify`: an exported artifact proven again, from its files alone."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tokcarve.cli.output import checked_rows, emit_json, print_facts, print_table, progress_bars

__all__ = ["verify"]


def verify(
    artifact: Annotated[Path | None, typer.Argument(help="The last one written here unless told.")] = None,
    trt: Annotated[
        bool, typer.Option("--trt", help="Also by tensorrt-rtx, and by TensorRT's rules in any case.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Prove an export again from its files: contents, ONNX rules, and what the graphs say of the golden samples."""
    from tokcarve.exporters.recheck import recheck
    from tokcarve.passes.errors import CheckError
    from tokcarve.recipes.artifact import last

    place = artifact if artifact is not None else last()
    with progress_bars() as progress:
        report = recheck(place, trt=trt, progress=progress)
    failed = report.failed
    if as_json:
        checks = [asdict(check) for check in report.checks]
        fields = {"artifact": str(place), "passed": not failed, "provider": report.provider, "checks": checks}
        emit_json("verify", fields | {"not_checked": list(report.not_checked)})
    else:
        facts = {"ran on": report.provider, "not checked": "; ".join(report.not_checked)}
        print_facts(str(place), facts)
        for title, passed in (("failed", False), ("passed", True)):
            found = [(one.name, one.detail) for one in report.checks if one.passed == passed]
            if found:
                print_table(
                    title,
                    ("check", "found"),
                    checked_rows(found, together=passed),
                )
    if failed:
        more = f" (and {len(failed) - 1} more of {len(report.checks)} checks)" if len(failed) > 1 else ""
        raise CheckError(
            f"{place} does not hold: {failed[0].name}: {failed[0].detail}{more}; export again with `tokcarve export`"
        )
