"""What a worker of calibration does: one task about one sample, from JSON to JSON, the same wherever it runs."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokcarve.passes import choose, families
from tokcarve.passes.asking import Question, Reply, ask, likeness, surprise
from tokcarve.passes.calibrate import observe, shared, tokens_at
from tokcarve.passes.checkpoint import resolve
from tokcarve.passes.errors import SampleError
from tokcarve.passes.families.load import read_model
from tokcarve.passes.graph import Seen
from tokcarve.passes.inputs.samples import Sample, SampleReader, open_samples
from tokcarve.passes.insert import RewriteResult, rewrite
from tokcarve.passes.router import Glimpse
from tokcarve.passes.stage import Decision, Frozen, Method
from tokcarve.passes.training import lesson_of, shown
from tokcarve.recipes.calibration.journal import Record, Task
from tokcarve.recipes.calibration.questions import Asker
from tokcarve.recipes.carve import method_of, positioned, rewritten

__all__ = ["FIRST_TOKENS", "Candidate", "Job", "Worker"]

FIRST_TOKENS = 4
"""Tokens of an answer by which a carved model is compared with the full one."""

ANSWER_TOKENS = 6
"""Tokens in which a sample is answered freely."""

_CARVED = 64  # rewritten graphs that a worker holds; they share their weights
_HIDDEN = 512  # hidden states of the full model that a worker holds, one row each


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A way to carve a model, as JSON: method, parameters, count, and counts that calibration froze by site."""

    method: str
    params: Mapping[str, Any]
    tokens: int
    positions: str = "renumbered"
    counts: Mapping[str, int] | None = None

    @property
    def made(self) -> Method:
        """The method with its parameters."""
        params = {name: tuple(v) if isinstance(v, list) else v for name, v in self.params.items()}
        return method_of(self.method, params)

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

    def open(self) -> "Worker":
        """A worker with the model and the samples open."""
        return Worker(self)


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
        self._watched = lru_cache(1)(self._watch)
        self._full: tuple[int, Reply] | None = None
        self.hidden = lru_cache(_HIDDEN)(self._hidden)

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
        frozen = None if candidate.counts is None else Frozen(counts=candidate.counts)
        return rewritten(self.graphs, candidate.made, candidate.tokens, frozen, candidate.positions)

    def watched(self, candidate: Mapping[str, Any]) -> tuple[Decision, RewriteResult]:
        """What a candidate's method decides from samples, and the unpruned model with what it looks at put in."""
        return self._watched(json.dumps(candidate, sort_keys=True))

    def _watch(self, text: str) -> tuple[Decision, RewriteResult]:
        candidate = Candidate(**json.loads(text))
        decision = candidate.made.decides(self.graphs.geometry, candidate.tokens)
        assert decision is not None
        return decision, rewrite(self.graphs, decision.stages())

    def full(self, number: int) -> Reply:
        """What the unpruned model says of a sample; the last one asked for is held."""
        if self._full is None or self._full[0] != number:
            self._full = number, ask(self.graphs, self.question(number), FIRST_TOKENS)
        return self._full[1]

    def _hidden(self, number: int) -> Tensor:
        """The unpruned model's last prompt row of a sample behind the final norm, float64 [hidden]."""
        return ask(self.graphs, self.question(number), 1).hidden.double()


def _counts(worker: Worker, sample: int, candidate: Mapping[str, Any]) -> Record:
    """How many tokens a dynamic form leaves behind every site, and would leave where a count is set."""
    (seen,) = observe(worker.carved(candidate), worker.pixels(sample))
    return {"counts": seen.counts, "passing": seen.passing}


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


def _cosine(worker: Worker, sample: int, candidate: Mapping[str, Any]) -> Record:
    """Between the full and a carved model: of the last prompt row behind the final norm; 0 where it is none."""
    hidden = ask(worker.carved(candidate).graphs, worker.question(sample), 1).hidden.double()
    return {"cosine": float(torch.nn.functional.cosine_similarity(worker.hidden(sample), hidden, dim=0).nan_to_num())}


def _looked(worker: Worker, sample: int, candidate: Mapping[str, Any]) -> Record:
    """What a decision measures of a sample in the unpruned model."""
    decision, watched = worker.watched(candidate)
    return {"seen": decision.measure(ask(watched.graphs, worker.question(sample), 1).given)}


def _tried(worker: Worker, sample: int, candidates: list[Mapping[str, Any]]) -> Record:
    """Likeness, and what each candidate and the full model make of the full model's answer."""
    full, question = worker.full(sample), worker.question(sample)
    stops, sure = worker.graphs.geometry.eos_token_ids, {}
    sure["full_surprise"] = surprise(full, full, stops)
    graphs = [worker.carved(one).graphs for one in candidates]
    # a candidate that leaves the vision graph alone sees what the full model saw
    seen = [full.seen if one.vision is worker.graphs.vision else None for one in graphs]
    carved = (ask(one, question, FIRST_TOKENS, full.tokens, saw) for one, saw in zip(graphs, seen, strict=True))
    found = [{**asdict(likeness(full, one, stops)), "surprise": surprise(full, one, stops), **sure} for one in carved]
    return {"tried": found}


def _guided(worker: Worker, sample: int, candidate: Mapping[str, Any]) -> Record:
    """KL of the full model on no more visual tokens than a candidate has, those that a teacher of its module values
    most, teacher by teacher."""
    one, full, question = Candidate(**candidate), worker.full(sample), worker.question(sample)
    graphs, found = positioned(worker.graphs, one.positions), list[float]()
    trainee = one.made.trainable(graphs.geometry, one.tokens)
    assert trainee is not None
    for taught in shown(graphs, lesson_of(graphs, question, full), trainee.teachers):
        best = choose.top_in_order(trainee.values(taught), one.tokens)
        seen = Seen(choose.take(full.seen.features, best), {"connector": best})
        reply = ask(graphs, question, FIRST_TOKENS, full.tokens, seen)
        found.append(likeness(full, reply, graphs.geometry.eos_token_ids).kl)
    return {"kl": found}


def _right(worker: Worker, sample: int, candidates: list[Mapping[str, Any]]) -> Record:
    """Whether each candidate, left to itself, gives the sample's answer; None for a sample without one."""
    answer = worker.sample(sample).answer
    if answer is None:
        return {"right": None}
    question, found = worker.question(sample), []
    for one in candidates:
        said = ask(worker.carved(one).graphs, question, ANSWER_TOKENS).tokens
        end = next((i for i, token in enumerate(said) if token in worker.graphs.geometry.eos_token_ids), len(said))
        found.append(worker.asker.prompter.decode(said[:end]).strip().lower() == answer.strip().lower())
    return {"right": found}


def _losses(worker: Worker, sample: int, prompts: list[str | None], candidates: list[Mapping[str, Any]]) -> Record:
    """KL of every candidate, question by question, for several questions about one image."""
    stops, own = worker.graphs.geometry.eos_token_ids, worker.sample(sample)
    models = [worker.graphs, *(worker.carved(one).graphs for one in candidates)]
    pixels = worker.asker.pixels(own.image)
    with torch.no_grad():
        # most of the work is to see the image, which for most methods does not depend on the question
        seen = [None if one.reads_text else one.see(pixels) for one in models]
    found = []
    for prompt in prompts:
        question = worker.asker.question(replace(own, prompt=prompt), worker.graphs)
        full = ask(models[0], question, FIRST_TOKENS, seen=seen[0])
        rest = zip(models[1:], seen[1:], strict=True)
        carved = [ask(one, question, FIRST_TOKENS, full.tokens, what) for one, what in rest]
        found.append([likeness(full, one, stops).kl for one in carved])
    return {"kl": found}


def _glimpse(worker: Worker, sample: int, layer: int) -> Record:
    """What a router that reads `layer` sees of an image."""
    glimpse = Glimpse(worker.graphs.parts, worker.graphs.geometry, layer)
    with torch.no_grad():
        return {"features": glimpse(worker.pixels(sample))[0].tolist()}


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
    "losses": _losses,
    "glimpse": _glimpse,
    "cosine": _cosine,
    "looked": _looked,
    "tried": _tried,
    "guided": _guided,
    "right": _right,
    "tokens": _tokens,
    "capture": _capture,
}
