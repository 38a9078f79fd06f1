"""`sweep`: every method at every count, controls among them, on the same questions; kept point by point."""

import json
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tokcarve.exporters.evaluation.engine import MAX_NEW
from tokcarve.exporters.evaluation.gate import Gate, gate_of
from tokcarve.exporters.evaluation.questions import QuestionSet
from tokcarve.exporters.evaluation.scores import soft
from tokcarve.exporters.evaluation.speaking import Preparer
from tokcarve.exporters.sweeping.table import Point, Row, rows_of_points
from tokcarve.exporters.sweeping.work import TEXT_ROWS, UNTIMED, SweepJob, questions_of
from tokcarve.passes import families
from tokcarve.passes.budget import count_for_tokens
from tokcarve.passes.checkpoint import Checkpoint, resolve, weights_identity
from tokcarve.passes.errors import BudgetError, MethodError, RecipeError, SampleError
from tokcarve.passes.families.load import read_config
from tokcarve.passes.flops import weight_parameters, whole_model
from tokcarve.passes.geometry import Geometry
from tokcarve.recipes.calibration.bench import bench_of
from tokcarve.recipes.calibration.pool import Runner, pool_of
from tokcarve.recipes.carve import method_of, planned
from tokcarve.recipes.journal import LineJournal, Record, Task, differences, read_journal
from tokcarve.recipes.make import make_recipe
from tokcarve.recipes.schema import Calibration

__all__ = ["CONTROLS", "Sweep", "sweep"]

CONTROLS = ("random", "uniform")
"""Always among the methods: what says nothing of an image and is hard to beat."""
_DEPENDS = ("tokcarve", "torch", "transformers", "numpy", "pillow", "tokenizers")

Tell = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What came of it. rows: the unpruned model first, then methods as they were named, controls last; refused: points
    that cannot be, and why; untimed: points that could not be exported or timed, and why; about: what it was made with,
    as JSON; kept: what each row keeps of the first picture."""

    model: str
    geometry: Geometry
    asked: QuestionSet
    rows: tuple[Row, ...]
    refused: Mapping[str, str]
    untimed: Mapping[str, str]
    about: Mapping[str, Any]
    kept: tuple[Record, ...]

    def record(self) -> dict[str, Any]:
        """All of it as JSON but the pictures."""
        return {
            **self.about,
            "points": [row.record() for row in self.rows],
            "refused": dict(self.refused),
            "untimed": dict(self.untimed),
        }


def sweep(
    model: str,
    *,
    methods: Sequence[str],
    tokens: Sequence[int],
    points: Path,
    data: Path | None = None,
    limit: int | None = None,
    calibration: Calibration | None = None,
    measure: bool = False,
    gate: bool = True,
    on: str = "local",
    seed: int = 0,
    tell: Tell | None = None,
) -> Sweep:
    """The sweep of `methods` and controls by `tokens`; what the file `points` has is not computed again. What methods
    leave open is decided by `calibration`, or assumed.

    Raises, before any model is read, ModelError, MethodError for an unknown method or where no point is possible,
    BudgetError for a count that does not fit, SampleError for questions that are none or points that were made from
    other ones, and RecipeError for a place to work that is none; EvaluationError where the unpruned model does not
    answer well enough for the rest to mean anything, unless `gate` is off.
    """
    if measure and on != "local":
        raise RecipeError(f"--measure takes times here, one after the other; leave --on {on} or --measure out")
    checkpoint = resolve(model)
    geometry = families.geometry(read_config(checkpoint.path))
    tasks, refused = _tasks(model, geometry, methods, tokens, calibrated=calibration is not None)
    samples = None if calibration is None else bench_of(checkpoint, geometry, calibration).record
    asked = questions_of(Preparer(checkpoint.path, geometry.image_token_id), data, limit)
    job = _job(checkpoint, asked, data, limit, calibration)
    runner = Runner(pool_of(on, job), _journal(points, _facts(checkpoint, asked, calibration, samples)), tell)
    with _open(runner):
        plain = next(runner.map(tasks[:1], "the unpruned model"))
        opened = _opened(plain, asked, checkpoint, ignored=not gate, seed=seed)
        records = [plain, *runner.map(tasks[1:], "points")]
        times, untimed = _timed(runner, tasks[1:] if measure else [])
    found = [Point(record=one, measured=time) for one, time in zip_longest(records, [None, *times])]
    about = _about(model, checkpoint, geometry, asked, tasks, on) | {"calibration": samples}
    about |= {"gate": opened.record(), "limit": limit, "data": None if data is None else str(data), "seed": seed}
    return Sweep(
        model=model,
        geometry=geometry,
        asked=asked,
        rows=rows_of_points(found, asked, CONTROLS, seed),
        refused=refused,
        untimed=untimed,
        about=about,
        kept=tuple(record["kept"] for record in records),
    )


def _timed(runner: Runner[LineJournal], tasks: Sequence[Task]) -> tuple[list[Record | None], dict[str, str]]:
    """What each point takes, and why some points could not be timed; those are tried again next time."""
    timed = [{**task, "do": "measure"} for task in tasks]
    found = list(runner.map(timed, "exporting and timing", keep=lambda record: UNTIMED not in record))
    whys = {f"{task['method']} at {task['tokens']}": one.get(UNTIMED) for task, one in zip(tasks, found, strict=True)}
    untimed = {name: str(why) for name, why in whys.items() if why is not None}
    return [None if UNTIMED in one else one for one in found], untimed


def _opened(plain: Record, asked: QuestionSet, checkpoint: Checkpoint, *, ignored: bool, seed: int) -> Gate:
    """The gate, which the point of the unpruned model must pass."""
    pairs = zip(plain["runs"][0], asked.questions, strict=True)
    hits = np.array([soft(one["text"], question.answers) for one, question in pairs])
    gate = gate_of(asked, hits, weights_identity(checkpoint), floor=None, ignored=ignored, seed=seed)
    gate.insist()
    return gate


def _tasks(
    model: str, geometry: Geometry, methods: Sequence[str], tokens: Sequence[int], *, calibrated: bool
) -> tuple[list[Task], dict[str, str]]:
    """The unpruned model and every point that is possible, and why the others are not."""
    found: list[Task] = [{"do": "answer", "method": "none", "params": {}, "tokens": geometry.total}]
    refused: dict[str, str] = {}
    counts = [count_for_tokens(count, geometry.total) for count in dict.fromkeys(tokens)]
    if geometry.total in counts:
        raise BudgetError(f"--tokens {geometry.total} drops nothing; the unpruned model is always there, leave it out")
    for name in dict.fromkeys((*(one for one in methods if one != "none"), *CONTROLS)):
        for count in counts:
            params = make_recipe(model, method=name, tokens=count).method.parameters
            try:
                _check(name, params, geometry, count, calibrated)
            except MethodError as error:
                refused[f"{name} at {count}"] = str(error)
                continue
            plain = json.loads(json.dumps(params))
            found.append({"do": "answer", "method": name, "params": plain, "tokens": count})
    if all(task["method"] in (*CONTROLS, "none") for task in found) and refused:
        raise MethodError(f"no point is possible: {next(iter(refused.values()))}")
    return found, refused


def _check(name: str, params: Mapping[str, Any], geometry: Geometry, count: int, calibrated: bool) -> None:
    """MethodError for a point that cannot be."""
    method = method_of(name, dict(params))
    if method.learns(geometry, count):
        if not calibrated:
            raise MethodError(f"{name} learns from samples; give some with --samples, as scenes")
        return
    stages = planned(method, geometry, count, None, "renumbered")
    if any("guide" in stage.reads for stage in stages):
        raise MethodError(f"{name} keeps a state from image to image, and these questions are about single images")


def _job(
    checkpoint: Checkpoint, asked: QuestionSet, data: Path | None, limit: int | None, calibration: Calibration | None
) -> SweepJob:
    return SweepJob(
        checkpoint=checkpoint.path.absolute(),
        data=None if data is None else data.absolute(),
        limit=limit,
        sha256=asked.sha256,
        most=MAX_NEW,
        calibration=calibration,
        threads=torch.get_num_threads(),
    )


def _facts(
    checkpoint: Checkpoint, asked: QuestionSet, calibration: Calibration | None, samples: Record | None
) -> dict[str, Any]:
    """What points of an earlier run must have been made from, to be gone on with."""
    calibrated = None
    if calibration is not None and samples is not None:
        calibrated = f"{samples['sha256'][:12]} {calibration.count} {calibration.seed} {calibration.steps}"
    return {
        "model": weights_identity(checkpoint).identity,
        "questions": asked.sha256,
        "calibration": calibrated,
        "most tokens": MAX_NEW,
        "versions": " ".join(f"{name} {version(name)}" for name in _DEPENDS) + f" python {platform.python_version()}",
    }


def _journal(path: Path, facts: Mapping[str, Any]) -> LineJournal:
    """The points of an earlier run of the same; SampleError where they were made from something else."""
    if not path.is_file():
        return LineJournal(path, facts, {})
    earlier = read_journal(path)
    changed = ["it is no file of points"] if earlier is None else differences(earlier[0], facts)
    if earlier is None or changed:
        raise SampleError(f"{path} cannot be gone on with: {'; '.join(changed)}; choose another -o, or remove it")
    return LineJournal(path, facts, earlier[1])


@contextmanager
def _open(runner: Runner[LineJournal]) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt("points that were done are kept, the same command goes on") from None
    finally:
        runner.pool.close()
        runner.journal.close(done=False)


def _about(
    model: str, checkpoint: Checkpoint, geometry: Geometry, asked: QuestionSet, tasks: Sequence[Task], on: str
) -> dict[str, Any]:
    from tokcarve.exporters.device.machine import cpu_name

    parameters = whole_model(weight_parameters(geometry), geometry.text)
    return {
        "model": model,
        "revision": checkpoint.revision,
        "weights_mib": 2 * parameters / 2**20,
        "questions": {
            "source": asked.source,
            "sha256": asked.sha256,
            "count": len(asked.questions),
            "images": max(asked.groups) + 1,
        },
        "unanswerable": list(asked.unanswerable),
        "methods": list(dict.fromkeys(task["method"] for task in tasks)),
        "tokens": sorted({task["tokens"] for task in tasks[1:]}),
        "text_rows": TEXT_ROWS,
        "environment": {
            "cpu": cpu_name(),
            "threads": torch.get_num_threads(),
            "on": on,
            "versions": {name: version(name) for name in (*_DEPENDS, "onnxruntime-gpu")}
            | {"python": platform.python_version()},
        },
    }
