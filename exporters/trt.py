"""What the `trt` face has beside the graphs: lint, a build on the CPU, then engines or the script that builds them."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokcarve.exporters.build_script import SCRIPT, build_script
from tokcarve.exporters.device.boards import Target, readers, unread
from tokcarve.exporters.device.face import EngineRecord
from tokcarve.exporters.faces.kind import Proof
from tokcarve.exporters.onnx import OPSET
from tokcarve.exporters.tensorrt import TrtReport, build_engine, check_with_rtx, gpu_for
from tokcarve.exporters.trt_checks import built, check_lint

__all__ = ["prove_trt"]

_ENGINES = "engines"


def prove_trt(
    folder: Path, weight_bytes: Mapping[str, int], place: Path, target: Target | None = None, opset: int = OPSET
) -> Proof:
    """Check graphs in `folder`, then build engines or write the script into the directory `place`, which is made.

    `weight_bytes` {graph file name: bytes of its weights}. Engines are built for `target` where it is TensorRT for RTX,
    which needs no GPU, and else for the GPU of this machine where that is the target. Without one, the lint is for
    every release that reads the `opset` that the graphs are in. ExportError when TensorRT is here and refuses a graph.
    """
    graphs = [folder / name for name in weight_bytes]
    (place / _ENGINES).mkdir(parents=True)
    releases = target.names if target is not None else readers(opset)
    ahead = target is not None and target.ahead
    lint = [check_lint(graph, releases) for graph in graphs]
    reports = [check_with_rtx(graph, _engine(place, graph) if ahead else None) for graph in graphs]
    checks = lint + [built(report) for report in reports if report.ran]
    asked = [report for report in reports if report.ran]
    unrun = [name for name in releases if not name.startswith("rtx-")]
    left = [f"the lint follows TensorRT's documents; TensorRT {', '.join(unrun)} was not run"] if unrun else []
    left += unread(opset) if target is None else []
    if not asked:
        left.append(f"no graph was parsed or built: {reports[0].problems[0]}")
    checker = f"{asked[0].tool} parsed and built every graph on the CPU as a check" if asked else reports[0].problems[0]
    engines, script = tuple[EngineRecord, ...](), None
    if not all(check.passed for check in checks):
        said = "TensorRT would refuse a graph"
    elif ahead and asked:
        engines = tuple(_record(report, place, graph) for report, graph in zip(reports, graphs, strict=True))
        left += _unseen(engines)
        said = f"{len(engines)} engines for {target} were built ahead of time on the CPU; no GPU ran them"
    elif gpu_for(target):
        engines = tuple(_build(place, graph) for graph in graphs)
        left[0] = "TensorRT ran here in one version; for the others the lint follows documents"
        said = f"{len(engines)} TensorRT engines were built for this machine's GPU ({checker})"
    else:
        script = SCRIPT
        (place / SCRIPT).write_text(build_script(graphs, weight_bytes, target), encoding="utf-8")
        (place / SCRIPT).chmod(0o755)
        left.append("no TensorRT engine was built, so that none was compared with torch")
        where = target if target is not None else "the device"
        said = f"No TensorRT engine was built here; run {place.name}/{SCRIPT} on {where} ({checker})"
    if not engines:
        shutil.rmtree(place / _ENGINES)
    return Proof(checks=tuple(checks), not_checked=tuple(left), said=said, engines=engines, script=script)


def _engine(place: Path, graph: Path) -> Path:
    return place / _ENGINES / f"{graph.stem}.engine"


def _build(place: Path, graph: Path) -> EngineRecord:
    return _record(build_engine(graph, _engine(place, graph), place / _ENGINES / "timing.cache"), place, graph)


def _record(report: TrtReport, place: Path, graph: Path) -> EngineRecord:
    return EngineRecord(
        graph=report.graph,
        file=_engine(place, graph).relative_to(place.parent).as_posix(),
        tool=report.tool,
        bytes=report.engine_bytes,
        seconds=report.seconds,
        peak_mib=report.peak_mib,
        loaded=report.loaded,
    )


def _unseen(engines: Sequence[EngineRecord]) -> list[str]:
    """What is not known of engines that no GPU has run."""
    left = ["the engines for RTX were built on a CPU; no GPU ran one, so that their numbers and times are not known"]
    if any(engine.loaded is None for engine in engines):
        left.append(
            "the engines were not deserialised, which takes a GPU driver; the runtime had nothing against their "
            "headers and sizes"
        )
    return left
