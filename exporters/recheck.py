"""An exported artifact proven again from its files alone: nothing of the checkpoint is needed, and no torch.

What `export` compared with the model in torch is compared with what it recorded of that: `golden.npz`.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tokcarve.exporters.device.boards import find_target, readers, unread
from tokcarve.exporters.device.compare import (
    Asked,
    Check,
    Said,
    check_numbers,
    check_power,
    read_golden,
    uncompared,
)
from tokcarve.exporters.device.face import (
    EXPORT,
    RECORD,
    ROUTER,
    WEIGHTS,
    ExportRecord,
    check_origin,
    file_record,
    read_export,
)
from tokcarve.exporters.device.losses import check_losses, read_losses
from tokcarve.exporters.device.merging import check_merging
from tokcarve.exporters.device.photographs import PLACE, QUESTIONS, check_photographs
from tokcarve.exporters.device.pipeline import Pipeline
from tokcarve.exporters.device.scratch import sweep_files
from tokcarve.exporters.device.session import STATIC, Face
from tokcarve.exporters.proving import proving_face, unshown
from tokcarve.recipes.artifact import read_artifact

__all__ = ["Report", "recheck"]

_TRT = "trt"

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Every check in the order in which it was made, and what was left unchecked; `provider` ran the graphs."""

    checks: tuple[Check, ...]
    not_checked: tuple[str, ...]
    provider: str

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that did not hold."""
        return tuple(check for check in self.checks if not check.passed)


def recheck(artifact: Path, *, trt: bool = False, progress: Progress | None = None) -> Report:
    """Proves the export of `artifact` again, by TensorRT's rules where it has that face.

    With `trt` by these rules in any case, and by tensorrt-rtx where it is here.

    Graphs run only where every file is what was exported: what else could be said of them is not about this export.
    Raises what reading an artifact and its export raise.
    """
    tell = progress if progress is not None else lambda what, done, total: None
    manifest, record = read_artifact(artifact).manifest, read_export(artifact)
    check_origin(artifact, record, manifest)
    directory = artifact / EXPORT
    checks = list(_files(directory, record, tell))
    left = ["the checkpoint: weights are what export wrote, and export compared them with it"]
    if all(check.passed for check in checks):
        checks += _rules(directory, record, left, trt, tell)
        provider = "CPUExecutionProvider"
        if STATIC & set(record.faces):
            provider, made = _run_all(artifact, record, left, tell)
            checks += made
        if "hf" in record.faces:
            checks += _hub(artifact, record, left, tell)
        if f"{PLACE}/{QUESTIONS}" in record.files:
            tell("running genai", 0, 1)
            made, open_questions = check_photographs(directory, record)
            checks, left = [*checks, *made], [*left, *open_questions]
            tell("running genai", 1, 1)
    else:
        provider, left = "none", [*left, "the graphs were not run, for files are not those that were exported"]
    return Report(checks=tuple(checks), not_checked=tuple(left), provider=provider)


def _run_all(artifact: Path, record: ExportRecord, left: list[str], tell: Progress) -> tuple[str, list[Check]]:
    """Where the graphs ran, and what comparing their numbers found."""
    try:
        face = proving_face(artifact, record)
    except ModuleNotFoundError as error:
        left.append(
            f"numbers: no CPU runs bfloat16 graphs, and {error.name}, which makes float32 of them, is not installed"
        )
        return "none", []
    left += unshown(face)
    provider = face.open("vision").provider
    return provider, list(_numbers(face, artifact / EXPORT, left, tell))


def _files(directory: Path, record: ExportRecord, tell: Progress) -> Iterator[Check]:
    """Every file by its whole content; in a changed weight file, the tensors that changed."""
    done, files = 0, {**record.files, **sweep_files(directory.parent)}
    for done, (name, recorded) in enumerate(files.items()):
        tell("reading files", done, len(files))
        path = directory / name
        if not path.is_file():
            yield Check(name=f"{name}: content", passed=False, detail="the file is missing")
            continue
        found = file_record(path)
        detail = f"SHA-256 of {found.bytes} bytes is the recorded one"
        if found != recorded:
            detail = f"SHA-256 is {found.sha256[:12]}, recorded is {recorded.sha256[:12]}"
            detail += _changed(path, record) if path.name == WEIGHTS else ""
        yield Check(name=f"{name}: content", passed=found == recorded, detail=detail)
    tell("reading files", done + 1, len(files))
    there = {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}
    strange = sorted(there - {*files, RECORD})
    detail = f"{strange[0]} is not in the record" if strange else "none"
    yield Check(name="files that were not exported", passed=not strange, detail=detail)


def _changed(path: Path, record: ExportRecord) -> str:
    """The first tensor of the weight file that is not what was written."""
    found, end = hashlib.sha256(), 0
    with path.open("rb") as stream:
        for name, one in record.tensors.items():
            found.update(stream.read(one.offset + one.bytes - end))
            end = one.offset + one.bytes
            if found.hexdigest() != one.sha256_so_far:
                return f"; of {len(record.tensors)} tensors the first that changed is {name}"
    return "; no tensor changed"


def _rules(directory: Path, record: ExportRecord, left: list[str], trt: bool, tell: Progress) -> Iterator[Check]:
    """ONNX's rules and TensorRT's, as far as what checks them is installed."""
    graphs = [directory / name for name in record.files if name.endswith(".onnx")]
    try:
        from tokcarve.exporters.wellformed import check_graph
    except ModuleNotFoundError as error:
        left.append(f"ONNX rules and constant shapes: {error.name} is not installed (pip install 'tokcarve[compress]')")
    else:
        for done, graph in enumerate(graphs):
            tell("checking graphs", done, len(graphs))
            yield check_graph(graph, record.open.get(graph.name, ()), record.opset)
    yield from _tensorrt([graph for graph in graphs if graph.name not in record.open], record, left, trt)


def _tensorrt(graphs: list[Path], record: ExportRecord, left: list[str], build: bool) -> Iterator[Check]:
    """The rules of every TensorRT that the export says it is for, and with `build` what tensorrt-rtx says."""
    if not build and _TRT not in record.faces:
        left.append("TensorRT: no lint, no parse, no build (verify --trt does them)")
        return
    try:
        from tokcarve.exporters.trt_checks import built, check_lint
    except ModuleNotFoundError as error:
        left.append(
            f"TensorRT: {error.name}, which its rules need, is not installed (pip install 'tokcarve[compress]')"
        )
        return
    releases = find_target(record.target).names if record.target is not None else readers(record.opset)
    yield from (check_lint(graph, releases) for graph in graphs)
    left += unread(record.opset) if record.target is None else []
    left.append(f"no TensorRT engine was {'built or ' * (not record.engines)}run")
    if not build:
        left.append("TensorRT: no parse, no build (verify --trt does them)")
        return
    from tokcarve.exporters.tensorrt import check_with_rtx

    reports = [check_with_rtx(graph) for graph in graphs]
    yield from (built(report) for report in reports if report.ran)
    left.extend(report.problems[0] for report in reports[:1] if not report.ran)


def _numbers(face: Face, directory: Path, left: list[str], tell: Progress) -> Iterator[Check]:
    """The graphs of every budget and of the whole model on the golden samples, and whether that could have failed."""
    record = face.record
    files = sorted(name for name in record.files if name.startswith("golden"))
    if not files:
        left.append("numbers: export could not run the model in torch, so that there are no golden samples")
    for name in files:
        further = int(name.split(".")[1].removeprefix("k")) if name.count(".") > 1 else None
        label = "pruned" if further is None else f"pruned to {further}"
        samples, carved, whole = read_golden(directory / name, record.geometry.image_token_id)
        tell(f"running {label}", 0, 2)
        made = _run(Pipeline(face, baseline=False, budget=further), samples, carved, label)
        tell(f"running {label}", 1, 2)
        left += uncompared(made, label)
        if further is None:
            made += _run(Pipeline(face, baseline=True), samples, whole, "unpruned")
        yield from made
        yield from _power(label, carved, whole, record.dtype, left)
        tell(f"running {label}", 2, 2)
    if record.router is not None and files:
        yield check_losses(face.open(ROUTER), *read_losses(directory / "golden.npz"), record.dtype)


def _power(label: str, carved: list[Said], whole: list[Said], dtype: str, left: list[str]) -> Iterator[Check]:
    power = check_power(carved, whole, dtype)
    if power.passed:
        yield replace(power, name="power" if label == "pruned" else f"{label}: power")
    else:
        left.append(f"{label}: the comparison has no power to tell the pruned model apart: {power.detail}")


def _hub(artifact: Path, record: ExportRecord, left: list[str], tell: Progress) -> Iterator[Check]:
    """The graphs of the `hf` face on the golden samples, and its processor where transformers is installed."""
    golden, geometry = artifact / EXPORT / "golden.npz", record.geometry
    tell("running hf", 0, 1)
    if golden.name in record.files:
        samples, carved, whole = read_golden(golden, geometry.image_token_id)
        yield from check_merging(artifact, record, samples, carved)
        if not STATIC & set(record.faces):
            yield from _power("pruned", carved, whole, record.dtype, left)
    try:
        from tokcarve.exporters.stock_processor import check_processor

        yield from check_processor(artifact / EXPORT, artifact / "processor", geometry, record.pruned.tokens)
    except ModuleNotFoundError as error:
        left.append(f"hf: the processor, for {error.name} is not installed (pip install 'tokcarve[compress]')")
    tell("running hf", 1, 1)


def _run(pipeline: Pipeline, samples: list[Asked], expected: list[Said], side: str) -> list[Check]:
    try:
        return check_numbers(pipeline, samples, expected, side=side, dtype=pipeline.record.dtype)
    except Exception as error:  # graphs that do not fit together fail in ONNX Runtime's and in NumPy's own ways
        why = " ".join(str(error).split()) or type(error).__name__
        return [Check(name=f"{side}: the graphs run", passed=False, detail=why)]
    finally:
        pipeline.release()
