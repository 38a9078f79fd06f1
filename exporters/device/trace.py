"""One pruned and one unpruned answer as a trace that Perfetto (ui.perfetto.dev) and chrome://tracing open.

Trace Event Format: complete events ("X") with begin `ts` and duration `dur` in microseconds. Each side is a process of
the trace, one after the other; in each, an answer holds its stages, and a stage that runs a graph holds what ONNX
Runtime says that every node of it took. Its clock is another one, so its runs are laid into the stages that made them.
An answer before that warms up and is left out. Timing nodes slows a graph down: read shares here, not milliseconds.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, TypeVar

from tokcarve.exporters.device.pipeline import Pipeline, greedy
from tokcarve.exporters.device.session import Face
from tokcarve.exporters.device.stages import Stages
from tokcarve.passes.errors import ExportError
from tokcarve.recipes.atomic import replace_file

__all__ = ["TRACED_TOKENS", "check_trace", "trace_answers", "write_trace"]

TRACED_TOKENS = 4
"""New tokens of a traced answer: decode steps are all alike."""
_STAGE_OF = {"vision": "encoder"}
"""Where a stage is not called as its graph is."""
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class _Span:
    """What was done from `begin` to `end`, in microseconds, and the graph that ran in it."""

    name: str
    graph: str | None
    begin: float
    end: float


class _Answer:
    """An answer in steps; `spans` are its stages."""

    def __init__(self, stages: Stages, new: int) -> None:
        self.stages, self.new = stages, new
        self.spans: list[_Span] = []

    def run(self) -> None:
        pipeline, (pixels, ids, lengths) = self.stages.pipeline, self.stages.asked
        seen = self._span("vision", pipeline.vision, pixels, ids, lengths)
        embedded = self.stages.with_state(self._span("embedding", pipeline.embed, ids, seen))
        made = self._span("prefill", pipeline.prefill, embedded, lengths)
        if self.new > 1:
            cache = self._span("cache", pipeline.cache, made, graph=False)
            latest = greedy(made["logits"])
            for step in range(self.new - 1):
                latest = greedy(self._span("decode", pipeline.step, latest, lengths, step, cache)["logits"])

    def _span(self, name: str, work: Callable[..., T], *arguments: Any, graph: bool = True) -> T:
        begin = perf_counter()
        made = work(*arguments)
        stage = _STAGE_OF.get(name, name)
        span = _Span(name=stage, graph=name if graph else None, begin=begin * 1e6, end=perf_counter() * 1e6)
        self.spans.append(span)
        return made


def check_trace(path: Path) -> None:
    """Raises ExportError where no file can be written at `path`."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise ExportError(f"--trace {path}: no file can be written there; name a file in a directory that is yours")


def trace_answers(face: Face, *, new: int) -> dict[str, Any]:
    """The trace, as JSON, of answers of `new` tokens, at most TRACED_TOKENS, of a set by its largest budget; raises
    ExportError as `Face.open`."""
    new, events, begin = min(new, TRACED_TOKENS), list[dict[str, Any]](), 0.0
    for process, side in enumerate(("pruned", "unpruned"), 1):
        with TemporaryDirectory() as folder:
            pipeline = Pipeline(face, baseline=side == "unpruned", profile_to=Path(folder))
            spans, runs = _traced(pipeline, new)
        first, last = spans[0].begin, spans[-1].end
        named = {"ph": "M", "pid": process, "tid": 1}
        events.append({"name": "process_name", "args": {"name": side}, **named})
        events.append({"name": "thread_name", "args": {"name": "an answer"}, **named})
        shift = begin - first
        events.append(_event("answer", "answer", process, begin, begin + last - first, {"new_tokens": new}))
        for span in spans:
            events.append(_event(span.name, "stage", process, span.begin + shift, span.end + shift, {}))
            if span.graph is not None:
                events += _nodes(next(runs[span.graph]), process, span.begin + shift, span.end + shift)
        begin += last - first
    about = {"artifact": face.artifact.name, "new_tokens": new, "batch": face.record.batch}
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}


def write_trace(path: Path, trace: Mapping[str, Any]) -> None:
    """Writes a trace whole or not at all; raises ArtifactError where the disk cannot be written."""
    replace_file(path, json.dumps(trace, allow_nan=False))


def _traced(pipeline: Pipeline, new: int) -> tuple[Sequence[_Span], Mapping[str, Iterator[list[dict[str, Any]]]]]:
    """Stages of the second answer, and for every graph the node events of each of its runs there, in order."""
    stages = Stages(pipeline, (new,))
    _Answer(stages, new).run()
    answer = _Answer(stages, new)
    answer.run()
    runs = {}
    for graph in {span.graph for span in answer.spans if span.graph is not None}:
        file = Path(pipeline.graph(graph).session.end_profiling())
        found = _runs(json.loads(file.read_text(encoding="utf-8")))
        runs[graph] = iter(found[-sum(span.graph == graph for span in answer.spans) :])
    pipeline.release()
    return answer.spans, runs


def _runs(events: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """ONNX Runtime's events by the run of the graph in which they were: the run's own first, then its nodes'."""
    runs = sorted((event for event in events if event.get("name") == "model_run"), key=lambda event: event["ts"])
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    found = []
    for run in runs:
        end = run["ts"] + run["dur"]
        found.append([run, *(node for node in kernels if run["ts"] <= node["ts"] < end)])
    return found


def _nodes(run: list[dict[str, Any]], process: int, begin: float, end: float) -> Iterator[dict[str, Any]]:
    """The nodes of a run, laid into the middle of the stage from `begin` to `end`."""
    whole, *nodes = run
    shift = begin + (end - begin - whole["dur"]) / 2 - whole["ts"]
    for node in nodes:
        starts, args = max(begin, node["ts"] + shift), node["args"]
        ends = min(end, node["ts"] + shift + node["dur"])
        kept = {"op": args.get("op_name"), "provider": args.get("provider"), "shapes": args.get("output_type_shape")}
        yield _event(node["name"].removesuffix("_kernel_time"), "node", process, starts, max(starts, ends), kept)


def _event(name: str, kind: str, process: int, begin: float, end: float, args: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "cat": kind,
        "ph": "X",
        "pid": process,
        "tid": 1,
        "ts": begin,
        "dur": end - begin,
        "args": args,
    }
