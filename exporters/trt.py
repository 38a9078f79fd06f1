"""What `--trt` does with an exported face: lint, a build on the CPU, then engines or the script that builds them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokcarve.exporters.device.compare import Check
from tokcarve.exporters.lint import lint_file
from tokcarve.exporters.lint_rules import ALL
from tokcarve.exporters.tensorrt import TrtReport, build_engine, build_script, can_build_engines, check_with_rtx

__all__ = ["SCRIPT", "TrtOutcome", "check_trt", "prove_trt"]

SCRIPT = "build_trt.sh"


@dataclass(frozen=True, kw_only=True)
class TrtOutcome:
    """What happened: `said` is one sentence for the user, `engines` the names of engine files that were built here,
    `script` the name of the script that builds them elsewhere."""

    said: str
    checks: tuple[Check, ...]
    not_checked: tuple[str, ...]
    reports: tuple[TrtReport, ...]
    engines: tuple[str, ...]
    script: str | None


def prove_trt(folder: Path, weight_bytes: Mapping[str, int], place: Path) -> TrtOutcome:
    """Check graphs in `folder`, then build engines or write the script into the directory `place`, which is made.

    `weight_bytes` {graph file name: bytes of its weights}. ExportError when TensorRT is here and refuses a graph.
    """
    graphs = [folder / name for name in weight_bytes]
    checks, reports = check_trt(graphs)
    asked = [report for report in reports if report.ran]
    skipped = ["the lint follows TensorRT's documents; none of TensorRT 10.3, 10.13, 10.16 and 11 was run"]
    if not asked:
        skipped.append(f"no graph was parsed or built: {reports[0].problems[0]}")
    checker = f"{asked[0].tool} parsed and built every graph on the CPU as a check" if asked else reports[0].problems[0]
    place.mkdir()
    if can_build_engines() and all(check.passed for check in checks):
        engines = _engines(place, graphs)
        skipped[0] = "TensorRT ran here in one version; for the others the lint follows documents"
        said = f"{len(engines)} TensorRT engines were built for this machine's GPU ({checker})"
    else:
        engines = ()
        (place / SCRIPT).write_text(build_script(graphs, weight_bytes), encoding="utf-8")
        (place / SCRIPT).chmod(0o755)
        skipped.append("no TensorRT engine was built")
        said = f"No TensorRT engine was built here; run {place.name}/{SCRIPT} on the device ({checker})"
    return TrtOutcome(
        said=said,
        checks=tuple(checks),
        not_checked=tuple(skipped),
        reports=tuple(reports),
        engines=engines,
        script=None if engines else SCRIPT,
    )


def check_trt(graphs: Sequence[Path]) -> tuple[list[Check], list[TrtReport]]:
    """The lint of every graph, and what tensorrt-rtx says of each where it is here."""
    checks = [_lint(graph) for graph in graphs]
    reports = [check_with_rtx(graph) for graph in graphs]
    return checks + [_built(report) for report in reports if report.ran], reports


def _lint(graph: Path) -> Check:
    findings = lint_file(graph)
    detail = str(findings[0]) if findings else f"nothing that TensorRT {', '.join(ALL)} would refuse"
    return Check(name=f"{graph.name}: TensorRT lint", passed=not findings, detail=detail)


def _built(report: TrtReport) -> Check:
    detail = report.problems[0] if report.problems else f"parsed and built on the CPU in {report.seconds} s"
    return Check(name=f"{report.graph}: {report.tool}", passed=report.passed, detail=detail)


def _engines(place: Path, graphs: list[Path]) -> tuple[str, ...]:
    (place / "engines").mkdir()
    names = []
    for graph in graphs:
        engine = place / "engines" / f"{graph.stem}.engine"
        build_engine(graph, engine)
        names.append(f"engines/{engine.name}")
    return tuple(names)
