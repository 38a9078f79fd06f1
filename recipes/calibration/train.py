"""A method's module trained on samples with the model frozen, and what it is worth beside the attention of [CLS].

One sample per step, each step on what the step before left: nothing to spread, so it runs in this process wherever
tasks are done. What is held is kept after every step.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from tokcarve.passes.asking import ask, likeness
from tokcarve.passes.errors import MethodError, SampleError
from tokcarve.passes.flops import rows_of
from tokcarve.passes.stage import Frozen, Method
from tokcarve.passes.trainee import Trainee, Trial
from tokcarve.passes.training import frozen, lesson_of, try_out
from tokcarve.recipes.calibration.bench import Bench
from tokcarve.recipes.calibration.teach import taught
from tokcarve.recipes.calibration.work import FIRST_TOKENS, Candidate, Worker
from tokcarve.recipes.carve import name_of, params_of, rewritten

__all__ = ["STEPS", "train"]

STEPS = 512
_MEANS, _DECAY, _TINY = (0.9, 0.999), 0.01, 1e-8  # of AdamW
_LONGEST = 1.0  # norm of a gradient; a longer one is shortened
TRAINING = "training"  # whose state the journal keeps
_PLAN = "plan"
_LOSSES = "losses"


def train(bench: Bench, method: Method, trainee: Trainee, tokens: int, positions: str) -> tuple[Frozen, dict[str, Any]]:
    """The trained tensors, the counts that training settles, and a record: of the teacher where samples choose it, of
    the loss, and of the carved model on samples held out beside plain top-k at the same mean count.

    MethodError where the loss is no number, SampleError for a run resumed under another plan.
    """
    steps = STEPS if bench.steps is None else bench.steps
    trainee, guide = taught(bench, method, trainee, tokens, positions)
    worker = bench.runner.pool.here()
    course = _Course(bench, worker, trainee, positions)
    plan = [name_of(method), params_of(method), tokens, positions, steps, bench.set.seed]
    with frozen(worker.model):
        tensors, losses = course.run(steps, plan)
        first = course.mean_loss(trainee.start(bench.set.seed), "measuring the loss before training")
        last = course.mean_loss(tensors, "measuring the loss")
        counts = course.counts(tensors) if trainee.decides else {}
    made = Frozen(tensors=tensors, counts=counts)
    span = max(1, steps // 8)
    loss = {"start": _mean(losses[:span]), "end": _mean(losses[-span:]), "held_out_before": first, "held_out": last}
    record: dict[str, Any] = {"tensors": {name: list(one.shape) for name, one in tensors.items()}, "counts": counts}
    record["training"] = {"steps": steps, "loss": loss, "curve": _curve(losses)} | guide
    record["report"] = _report(bench, worker, method, tokens, made, positions)
    return made, record


class _Course:
    """Training on the samples of a bench."""

    def __init__(self, bench: Bench, worker: Worker, trainee: Trainee, positions: str) -> None:
        self.bench, self.worker, self.trainee, self.positions = bench, worker, trainee, positions

    def run(self, steps: int, plan: list[Any]) -> tuple[dict[str, Tensor], list[float]]:
        """The tensors after `steps`, and the loss of every step."""
        journal, tell = self.bench.runner.journal, self.bench.runner.tell
        mark = torch.tensor(list(hashlib.sha256(json.dumps(plan).encode()).digest()), dtype=torch.uint8)
        done, state = journal.saved(TRAINING)
        if not done:
            tensors = self.trainee.start(self.bench.set.seed)
            state = _state_of(tensors) | {_LOSSES: torch.zeros(steps, dtype=torch.float64), _PLAN: mark}
        elif _PLAN not in state or not torch.equal(state[_PLAN], mark):
            raise SampleError(
                "the interrupted training had another method, parameters, count, positions, steps or seed; give what "
                "was given then, or leave --resume out to begin again"
            )
        tell("training", done, steps)
        for step in range(done, steps):
            sample = self._sample(step)
            tensors = {name: state[name].detach().requires_grad_() for name in self.trainee.shapes}
            loss = self.trainee.loss(self.trial(tensors, sample, step / steps))
            if not math.isfinite(float(loss.detach())):
                raise MethodError(
                    f"the loss of training is {float(loss.detach())} at step {step} on sample {sample} of "
                    f"{self.bench.set.source}; train with other hyper-parameters (--param) or on other samples"
                )
            slopes = torch.autograd.grad(loss, list(tensors.values()), allow_unused=True)
            rate = self.trainee.rate * (1 + math.cos(math.pi * step / steps)) / 2
            found = dict(zip(tensors, slopes, strict=True))
            state |= _adamw(state, found, step + 1, rate)
            state[_LOSSES][step] = float(loss.detach())
            journal.save(step + 1, state, TRAINING)
            tell("training", step + 1, steps)
        return {name: state[name].detach() for name in self.trainee.shapes}, state[_LOSSES].tolist()

    def _sample(self, step: int) -> int:
        """Every sample once, in an order drawn anew, before any comes again."""
        learning = self.bench.learning
        again, place = divmod(step, len(learning))
        draw = torch.Generator().manual_seed((self.bench.set.seed << 20) + again)
        return learning[int(torch.randperm(len(learning), generator=draw)[place])]

    def trial(self, tensors: Mapping[str, Tensor], sample: int, done: float) -> Trial:
        """One sample with these tensors after a share `done` of training."""
        graphs = self.worker.graphs
        lesson = lesson_of(graphs, self.worker.question(sample), self.worker.full(sample))
        return try_out(graphs, lesson, self.trainee, tensors, done=done, positions=self.positions)

    @torch.no_grad()
    def mean_loss(self, tensors: Mapping[str, Tensor], what: str) -> float:
        """Over the samples held out, as at the end of training."""
        held, losses = self.bench.held, list[float]()
        for number, sample in enumerate(held):
            losses.append(float(self.trainee.loss(self.trial(tensors, sample, 1.0))))
            self.bench.runner.tell(what, number + 1, len(held))
        return _mean(losses)

    @torch.no_grad()
    def counts(self, tensors: Mapping[str, Tensor]) -> dict[str, int]:
        """What the mean soft counts of the samples that calibrate come to."""
        learning, sums = self.bench.learning, dict[str, float]()
        for number, sample in enumerate(learning):
            for site, alive in self.trial(tensors, sample, 1.0).alive.items():
                sums[site] = sums.get(site, 0.0) + float(alive.sum())
            self.bench.runner.tell("counting softly", number + 1, len(learning))
        return self.trainee.counts({site: total / len(learning) for site, total in sums.items()})


def _state_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    means = {f"{name}|{i}": torch.zeros_like(tensor) for name, tensor in tensors.items() for i in (1, 2)}
    return dict(tensors) | means


@torch.no_grad()
def _adamw(
    state: Mapping[str, Tensor], slopes: Mapping[str, Tensor | None], step: int, rate: float
) -> dict[str, Tensor]:
    """The tensors and running means after the `step`-th update; a tensor without a slope stays."""
    there = {name: slope for name, slope in slopes.items() if slope is not None}
    length = math.sqrt(math.fsum(float(slope.double().square().sum()) for slope in there.values()))
    shorter = min(1.0, _LONGEST / max(length, _TINY))
    made = dict[str, Tensor]()
    for name, slope in there.items():
        slope = slope * shorter
        first = _MEANS[0] * state[f"{name}|1"] + (1 - _MEANS[0]) * slope
        second = _MEANS[1] * state[f"{name}|2"] + (1 - _MEANS[1]) * slope.square()
        made |= {f"{name}|1": first, f"{name}|2": second}
        first, second = (one / (1 - mean**step) for one, mean in zip((first, second), _MEANS, strict=True))
        made[name] = state[name] * (1 - rate * _DECAY) - rate * first / (second.sqrt() + _TINY)
    return made


def _report(bench: Bench, worker: Worker, method: Method, tokens: int, made: Frozen, positions: str) -> dict[str, Any]:
    """Divergence and loyalty (share of samples whose first tokens are the full model's) on samples held out, of the
    carved model and of plain top-k at the nearest whole mean count: by [CLS] in the last layer used, or an even grid
    where the tower has none."""
    result = rewritten(worker.graphs, method, tokens, made, positions)
    rows = rows_of(bench.geometry, result.schedule, 0).text
    count = round(sum(rows) / len(rows))
    name, params = ("vtc_cls", {"layers": 1}) if bench.geometry.vision.prefix else ("uniform", {})
    plain = Candidate(method=name, params=params, tokens=count, positions=positions).plain()
    tasks = [{"do": "likeness", "sample": sample, "candidates": [plain]} for sample in bench.held]
    others = [record["likeness"][0] for record in bench.runner.map(tasks, "comparing with plain top-k")]
    stops, own = bench.geometry.eos_token_ids, list[dict[str, Any]]()
    for number, sample in enumerate(bench.held):
        full = worker.full(sample)
        reply = ask(result.graphs, worker.question(sample), FIRST_TOKENS, full.tokens)
        own.append(asdict(likeness(full, reply, stops)))
        bench.runner.tell("measuring the carved model", number + 1, len(bench.held))
    against = {"method": name, "params": params, "tokens": count}
    return {"samples": len(own), "trained": _told(own), "plain": against | _told(others)}


def _told(found: list[dict[str, Any]]) -> dict[str, float]:
    return {"kl": _mean([one["kl"] for one in found]), "loyalty": _mean([float(one["same"]) for one in found])}


def _curve(losses: list[float]) -> list[float]:
    """Means of eight stretches of training, or of every step where there are fewer."""
    parts = min(8, len(losses))
    bounds = [len(losses) * i // parts for i in range(parts + 1)]
    return [_mean(losses[one:later]) for one, later in zip(bounds, bounds[1:], strict=False)]


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
