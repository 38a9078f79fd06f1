"""What a worker of calibration does: one task about one sample, from JSON to JSON, the same wherever it runs."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokcarve.passes import families
from tokcarve.passes.asking import Question, Reply, ask, likeness
from tokcarve.passes.calibrate import observe, shared, tokens_at
from tokcarve.passes.checkpoint import resolve
from tokcarve.passes.errors import SampleError
from tokcarve.passes.families.load import read_model
from tokcarve.passes.inputs.samples import Sample, SampleReader, open_samples
from tokcarve.passes.insert import RewriteResult
from tokcarve.passes.stage import Frozen
from tokcarve.recipes.calibration.journal import Record, Task
from tokcarve.recipes.calibration.questions import Asker
from tokcarve.recipes.carve import method_of, rewritten

__all__ = ["FIRST_TOKENS", "Candidate", "Job", "Worker"]

FIRST_TOKENS = 4
"""Tokens of an answer by which a carved model is compared with the full one."""

_CARVED = 64  # rewritten graphs that a worker holds; they share their weights


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A way to carve a model, as JSON: method, parameters, count, and counts that calibration froze by site."""

    method: str
    params: Mapping[str, Any]
    tokens: int
    positions: str = "renumbered"
    counts: Mapping[str, int] | None = None

    def plain(self) -> dict[str, Any]:
        """The fields as JSON takes them."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker opens before its first task: a checkpoint directory and a sample set, which must be the same
    wherever it runs (`sha256`)."""

    checkpoint: Path
    samples: str
    count: int
    seed: int
    sha256: str
    threads: int | None = field(default=None, compare=False)


class Worker:
    """The model, the samples, and what is needed of both again and again."""

    def __init__(self, job: Job) -> None:
        samples = open_samples(job.samples, count=job.count, seed=job.seed)
        if samples.sha256 != job.sha256:
            raise SampleError(
                f"sample set {job.samples} holds other samples here (sha256 {samples.sha256[:12]}) than where the work "
                f"was given out ({job.sha256[:12]}); make the same files readable on every machine"
            )
        self.checkpoint = resolve(str(job.checkpoint))
        self.model: Any = read_model(self.checkpoint.path)
        self.graphs = families.capture(self.model)
        self.samples = SampleReader(samples)
        self.asker = Asker(self.checkpoint.path, self.graphs.geometry)
        self._carved = lru_cache(_CARVED)(self._carve)
        self._full: tuple[int, Reply] | None = None

    def __call__(self, task: Task) -> Record:
        """What comes of `task`."""
        arguments = {name: value for name, value in task.items() if name != "do"}
        return TASKS[task["do"]](self, **arguments)

    def sample(self, number: int) -> Sample:
        """A sample of the set."""
        return self.samples[number]

    def question(self, number: int) -> Question:
        """A sample as the model is asked about it; one without a prompt is asked what it shows."""
        return self.asker.question(self.sample(number), self.graphs)

    def pixels(self, number: int) -> Tensor:
        """The image of a sample, float32 [1, 3, height, width]."""
        return self.asker.pixels(self.sample(number).image)

    def carved(self, candidate: Mapping[str, Any]) -> RewriteResult:
        """The model under a candidate's plain form."""
        return self._carved(json.dumps(candidate, sort_keys=True))

    def _carve(self, text: str) -> RewriteResult:
        candidate = Candidate(**json.loads(text))
        params = {name: tuple(v) if isinstance(v, list) else v for name, v in candidate.params.items()}
        frozen = None if candidate.counts is None else Frozen(counts=candidate.counts)
        method = method_of(candidate.method, params)
        return rewritten(self.graphs, method, candidate.tokens, frozen, candidate.positions)

    def full(self, number: int) -> Reply:
        """What the unpruned model says of a sample; the last one asked for is held."""
        if self._full is None or self._full[0] != number:
            self._full = number, ask(self.graphs, self.question(number), FIRST_TOKENS)
        return self._full[1]


def _counts(worker: Worker, sample: int, candidate: Mapping[str, Any]) -> Record:
    """How many tokens a dynamic form leaves behind every site."""
    (seen,) = observe(worker.carved(candidate), worker.pixels(sample))
    return {"counts": seen.counts}


def _agreement(worker: Worker, sample: int, dynamic: Mapping[str, Any], frozen: Mapping[str, Any]) -> Record:
    """The share of what a dynamic form keeps that the frozen one keeps too; 1 for the same set."""
    pixels = worker.pixels(sample)
    return {"overlap": shared(worker.carved(dynamic), worker.carved(frozen), pixels)}


def _likeness(worker: Worker, sample: int, candidates: list[Mapping[str, Any]]) -> Record:
    """How near each candidate is to the full model on the first tokens of its answer."""
    full, question = worker.full(sample), worker.question(sample)
    stops, said = worker.graphs.geometry.eos_token_ids, full.tokens
    carved = (ask(worker.carved(one).graphs, question, FIRST_TOKENS, said) for one in candidates)
    return {"likeness": [asdict(likeness(full, one, stops)) for one in carved]}


def _tokens(worker: Worker, sample: int, site: str) -> Record:
    """The tokens that leave a site of the unpruned vision graph; the only record that is no JSON."""
    return {"tokens": tokens_at(worker.graphs, site, worker.pixels(sample))}


def _capture(worker: Worker, sample: int) -> Record:
    """The largest difference between the captured vision graph and the checkpoint's own model."""
    pixels = worker.pixels(sample)
    with torch.no_grad():
        expected = torch.stack(list(worker.model.get_image_features(pixel_values=pixels).pooler_output))
        return {"difference": float((worker.graphs.vision(pixels)[0] - expected).abs().max())}


TASKS: dict[str, Callable[..., Record]] = {
    "counts": _counts,
    "agreement": _agreement,
    "likeness": _likeness,
    "tokens": _tokens,
    "capture": _capture,
}
