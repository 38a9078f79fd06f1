"""One point of a sweep: a method at a count, from JSON to JSON, the same wherever it runs."""

import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tokcarve.exporters.evaluation.answering import Interview
from tokcarve.exporters.evaluation.cast import RANDOM_SEEDS, UNPRUNED, Role
from tokcarve.exporters.evaluation.in_torch import TorchSpeaker
from tokcarve.exporters.evaluation.questions import QuestionSet, open_questions, usable
from tokcarve.exporters.evaluation.scores import Answer
from tokcarve.exporters.evaluation.speaking import Preparer
from tokcarve.exporters.pictures.following import follow
from tokcarve.exporters.pictures.kept import Column
from tokcarve.passes import families
from tokcarve.passes.asking import Question
from tokcarve.passes.checkpoint import resolve
from tokcarve.passes.errors import SampleError, TokcarveError
from tokcarve.passes.families.load import read_model
from tokcarve.passes.flops import count_flops, rows_of
from tokcarve.passes.inputs.prompt import PromptError
from tokcarve.passes.insert import RewriteResult
from tokcarve.passes.stage import Method
from tokcarve.recipes.artifact import write_artifact
from tokcarve.recipes.calibration.bench import bench_of
from tokcarve.recipes.calibration.freeze import leaves_open, tuned
from tokcarve.recipes.carve import method_of, rewritten
from tokcarve.recipes.compress import numbers_of, plan_recipe
from tokcarve.recipes.files import dump_recipe
from tokcarve.recipes.journal import LineJournal, Record, Task
from tokcarve.recipes.make import make_recipe
from tokcarve.recipes.schema import Calibration

__all__ = ["TEXT_ROWS", "UNTIMED", "Sweeper", "SweepJob", "questions_of"]

UNTIMED = "untimed"
"""In the record of a point that could not be exported or timed: why."""
TEXT_ROWS = 64
"""Rows of text beside the image in counted FLOPs."""


@dataclass(frozen=True, kw_only=True)
class SweepJob:
    """What a worker opens: a checkpoint directory, questions, which must be the same wherever it runs (`sha256`), and
    how many tokens answers have at most; calibration: what decides and freezes what methods leave open, None where that
    is assumed."""

    checkpoint: Path
    data: Path | None
    limit: int | None
    sha256: str
    most: int
    calibration: Calibration | None = None
    threads: int | None = field(default=None, compare=False)

    def open(self) -> "Sweeper":
        """A worker with the model and the questions open."""
        return Sweeper(self)


def questions_of(preparer: Preparer, data: Path | None, limit: int | None) -> QuestionSet:
    """The questions that can be put to the model of `preparer`."""

    def why(question: Any) -> str | None:
        try:
            preparer.words(question.text)
        except PromptError as error:
            return f"question {question.id}: {error}"
        return None

    return usable(open_questions(data, limit), why)


class Sweeper:
    """The model, the questions, and what the unpruned model says to them.

    Raises SampleError where the questions are others than those that the work was given out for.
    """

    def __init__(self, job: SweepJob) -> None:
        self.checkpoint = resolve(str(job.checkpoint))
        model: Any = read_model(self.checkpoint.path)
        self.graphs = families.capture(model)
        self.preparer = Preparer(self.checkpoint.path, self.graphs.geometry.image_token_id)
        self.asked = questions_of(self.preparer, job.data, job.limit)
        if self.asked.sha256 != job.sha256:
            raise SampleError(
                f"{self.asked.source} holds other questions here (sha256 {self.asked.sha256[:12]}) than where the work "
                f"was given out ({job.sha256[:12]}); make the same files readable on every machine"
            )
        self.bench = (
            None if job.calibration is None else bench_of(self.checkpoint, self.graphs.geometry, job.calibration)
        )
        self.calibration = job.calibration
        self.interview = Interview(self.asked.questions, self.preparer, LineJournal(None, {}, {}), job.most)
        self.full = self.interview.unpruned(
            self._role(UNPRUNED, [RewriteResult(graphs=self.graphs, schedule=(), modified=False)])
        )

    def __call__(self, task: Task) -> Record:
        """What comes of `task`: {"do": "answer" or "measure", "method", "params", "tokens"}."""
        if task["do"] == "measure":
            return self._measured(task["method"], task["params"], task["tokens"])
        return self._answered(task["method"], task["params"], task["tokens"])

    def _answered(self, method: str, params: Mapping[str, Any], tokens: int) -> Record:
        geometry = self.graphs.geometry
        seeds = [{"seed": seed} for seed in range(RANDOM_SEEDS)] if method == "random" else [{}]
        results = [self._carved(method, {**params, **seed}, tokens) for seed in seeds]
        whole = method == "none"
        runs = [self.full] if whole else self.interview.others(self._role(f"{method} {tokens}", results))
        _, numbers, _ = numbers_of(geometry, results[0])
        flops = count_flops(geometry, rows_of(geometry, results[0].schedule, TEXT_ROWS))
        return {
            "method": method,
            "tokens": tokens,
            "schedule": [asdict(stage) for stage in results[0].schedule],
            "numbers": numbers.model_dump(),
            "flops": {"encoder": flops.vision, "prefill": flops.prefill},
            "kept": self._kept(results[0], method, tokens),
            "runs": [[_written(answer) for answer in run] for run in runs],
        }

    def _carved(self, method: str, params: Mapping[str, Any], tokens: int) -> RewriteResult:
        made, frozen = _method(method, params), None
        if self.bench is not None and leaves_open(made, self.graphs.geometry, tokens):
            made, frozen, _ = tuned(self.bench, made, tokens)
        return rewritten(self.graphs, made, tokens, frozen)

    def _measured(self, method: str, params: Mapping[str, Any], tokens: int) -> Record:
        calibration = self.calibration
        if not leaves_open(_method(method, params), self.graphs.geometry, tokens):
            calibration = None
        try:
            return _measured(str(self.checkpoint.path), method, params, tokens, calibration)
        except TokcarveError as error:
            # the other points are worth their hours
            return {UNTIMED: str(error)}

    def _role(self, name: str, results: list[RewriteResult]) -> Role:
        runs = tuple(partial(TorchSpeaker, result.graphs) for result in results)
        return Role(name=name, method=name, runtime="torch", tokens=0, mean=0.0, runs=runs)

    def _kept(self, result: RewriteResult, method: str, tokens: int) -> Record:
        """What the last stage keeps of the first picture, beside its first question."""
        first = self.asked.questions[0]
        before, after = self.preparer.words(first.text)
        pixels = torch.from_numpy(self.preparer.images([first.open()]))
        stages, _ = follow(result, Question(pixel_values=pixels, before=before, after=after), 1)
        column = Column(
            name=method,
            method=method,
            runtime="torch",
            source="",
            tokens=tokens,
            total=self.graphs.geometry.total,
            stages=stages,
        )
        return {**column.last.record(), "scores": None}


def _method(name: str, params: Mapping[str, Any]) -> Method:
    return method_of(name, {key: tuple(value) if isinstance(value, list) else value for key, value in params.items()})


def _measured(
    model: str, method: str, params: Mapping[str, Any], tokens: int, calibration: Calibration | None
) -> Record:
    """Median milliseconds and speed-ups of a point's own export in ONNX Runtime, pruned and unpruned in turn; of the
    export nothing stays."""
    from tokcarve.exporters.device.profile import profile
    from tokcarve.exporters.export import export_artifact
    from tokcarve.exporters.faces.kind import Request

    with tempfile.TemporaryDirectory() as folder:
        recipe = make_recipe(model, method=method, params=params, tokens=tokens)
        recipe = recipe.model_copy(update={"calibration": calibration})
        plan = plan_recipe(recipe, out=Path(folder) / "artifact")
        artifact = write_artifact(plan.out, plan.manifest, dump_recipe(recipe), plan.checkpoint, modules=plan.modules)
        export_artifact(artifact.directory, Request(max_text=TEXT_ROWS, max_new=16))
        stages = profile(artifact.directory, artifact.manifest.schedule).stages
    names = ("encoder", "prefill", "decode", "first_token")
    return {
        name: {"pruned": one.pruned.p50, "unpruned": one.unpruned.p50, "speedup": one.speedup}
        for name, one in ((name, stages[name]) for name in names)
    }


def _written(answer: Answer) -> Record:
    return {"tokens": list(answer.tokens), "text": answer.text, "same": answer.same, "kl": list(answer.kl)}
