"""What TensorRT would say of a graph, as checks: by its rules and by tensorrt-rtx; for `export` and `verify` alike."""

from collections.abc import Sequence
from pathlib import Path

from tokcarve.exporters.device.compare import Check
from tokcarve.exporters.lint import lint_file
from tokcarve.exporters.tensorrt import TrtReport

__all__ = ["built", "check_lint"]


def check_lint(graph: Path, releases: Sequence[str]) -> Check:
    """Whether any of the TensorRT releases, by name, would refuse the graph."""
    findings = lint_file(graph, releases)
    detail = str(findings[0]) if findings else f"nothing that TensorRT {', '.join(releases)} would refuse"
    return Check(name=f"{graph.name}: TensorRT lint", passed=not findings, detail=detail)


def built(report: TrtReport) -> Check:
    """What became of a graph in a TensorRT that was asked."""
    detail = report.problems[0] if report.problems else f"parsed and built on the CPU in {report.seconds} s"
    return Check(name=f"{report.graph}: {report.tool}", passed=report.passed, detail=detail)
