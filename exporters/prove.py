"""The proof of an export before it takes its place: its graphs by rules, its weights by value, its numbers by torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tokcarve.exporters import verify
from tokcarve.exporters.device.compare import Check
from tokcarve.exporters.device.face import ROUTER, OrtFace
from tokcarve.exporters.device.pipeline import Pipeline
from tokcarve.exporters.device.session import Face
from tokcarve.exporters.golden import Golden, save_golden
from tokcarve.exporters.graph_file import GraphFile
from tokcarve.exporters.source import Source, read_source
from tokcarve.exporters.trt import TrtOutcome, prove_trt
from tokcarve.exporters.wellformed import check_graph
from tokcarve.passes.errors import CheckError
from tokcarve.recipes.manifest import CheckRecord

__all__ = ["Proof", "judge", "prove"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The checks that were made, all passed, and what was not checked; `trt` is None unless TensorRT was asked for."""

    checks: tuple[Check, ...]
    not_checked: tuple[str, ...]
    trt: TrtOutcome | None

    @property
    def records(self) -> tuple[CheckRecord, ...]:
        """The checks as a record keeps them."""
        return tuple(CheckRecord(name=one.name, passed=one.passed, detail=one.detail) for one in self.checks)


def prove(
    source: Source, draft: OrtFace, work: Path, stage: Path, graphs: Sequence[GraphFile], trt: bool, tell: Progress
) -> Proof:
    """Checks everything in `stage`, which lies in `work` as in an artifact; golden samples are written there.

    CheckError for the first check that does not hold.
    """
    paths = [stage / graph.name for graph in graphs]
    named = dict((*source.model.named_parameters(), *source.model.named_buffers()))
    tell("checking", 0, 3)
    checks = [check_graph(path) for path in paths]
    checks.append(verify.check_weights(paths, named, source.stored))
    _require(checks)
    tell("checking", 1, 3)
    face = Face(artifact=work, record=draft, providers=("CPUExecutionProvider",))
    more, open_questions = _compare(source, face, stage)
    checks += more
    outcome = None
    if trt:
        tell("checking", 2, 3)
        outcome = prove_trt(stage, {graph.name: graph.weight_bytes for graph in graphs})
        checks += outcome.checks
        open_questions += outcome.not_checked
        _require(checks)
    else:
        open_questions.append("TensorRT: no lint, no parse, no build (export --trt does them)")
    return Proof(checks=tuple(checks), not_checked=tuple(open_questions), trt=outcome)


def _compare(source: Source, face: Face, stage: Path) -> tuple[list[Check], list[str]]:
    """ONNX Runtime against torch on golden samples of every budget, which are written, and what that leaves open."""
    checks, open_questions = list[Check](), list[str]()
    reading = read_source(source)
    if isinstance(reading, str):
        return [], [f"no number was compared with the model in torch: {reading}; export where they are"]
    for one in source.carved:
        golden, further = reading.golden(one), one is not source.largest
        label = f"pruned to {one.budget}" if further else "pruned"
        save_golden(golden, one.graphs.geometry, stage / (f"golden.k{one.budget}.npz" if further else "golden.npz"))
        made = _numbers(Pipeline(face, baseline=False, budget=one.budget if further else None), golden, label)
        if not further:
            made += _numbers(Pipeline(face, baseline=True), golden, "unpruned")
            if reading.router is not None:
                made.append(verify.check_router(face.open(ROUTER), reading.router, golden.samples))
        _require(made)
        power, left = judge(golden)
        checks += made + [replace(check, name=f"{label}: {check.name}" if further else check.name) for check in power]
        open_questions += [f"{label}: {text}" if further else text for text in left if text not in open_questions]
    return checks, open_questions


def _numbers(pipeline: Pipeline, golden: Golden, side: str) -> list[Check]:
    expected = golden.plain if pipeline.baseline else golden.pruned
    made = verify.check_numbers(pipeline, golden.samples, expected, side=side)
    pipeline.release()
    return made


def judge(golden: Golden) -> tuple[list[Check], list[str]]:
    """What the golden comparison was worth: the check of power if it had any, and what it leaves open."""
    power = verify.check_power(golden)
    open_questions = ["ONNX Runtime ran on the CPU; no GPU provider was tried", "no run on an edge device"]
    if not power.passed:
        open_questions.append(f"the comparison of logits has no power to tell the pruned model apart: {power.detail}")
    if golden.skipped:
        open_questions.append(f"{golden.skipped} images were passed over: rounding decides what they keep or merge")
    return [power] if power.passed else [], open_questions


def _require(checks: list[Check]) -> None:
    failed = [check for check in checks if not check.passed]
    if failed:
        more = f" ({len(failed) - 1} further checks failed)" if len(failed) > 1 else ""
        raise CheckError(f"the export does not hold and was not written: {failed[0].name}: {failed[0].detail}{more}")
