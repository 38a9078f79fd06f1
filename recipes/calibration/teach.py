"""Which layer of the unpruned model a module learns from: samples choose it before training, in tasks of one sample."""

import math
from typing import Any

from tokcarve.passes.stage import Method
from tokcarve.passes.trainee import Trainee
from tokcarve.recipes.calibration.bench import Bench
from tokcarve.recipes.calibration.work import Candidate
from tokcarve.recipes.carve import name_of, params_of

__all__ = ["SAMPLES", "taught"]

SAMPLES = 64
"""Samples that calibrate, by which a teacher is chosen."""


def taught(
    bench: Bench, method: Method, trainee: Trainee, tokens: int, positions: str
) -> tuple[Trainee, dict[str, Any]]:
    """`trainee` under the teacher whose choice of what enters the language model costs the least divergence, the
    shallower of equal ones, and a record of all; as it is where there is no choice."""
    if len(trainee.teachers) < 2:
        return trainee, {}
    candidate = Candidate(method=name_of(method), params=params_of(method), tokens=tokens, positions=positions).plain()
    tasks = [{"do": "guided", "sample": sample, "candidate": candidate} for sample in bench.learning[:SAMPLES]]
    records = [record["kl"] for record in bench.runner.map(tasks, "finding the layer to learn from")]
    losses = [math.fsum(one) / len(records) for one in zip(*records, strict=True)]
    best = min(range(len(losses)), key=lambda place: (losses[place], place))
    sites = [site for site, _ in trainee.teachers]
    about = {"chosen": sites[best], "kl": dict(zip(sites, losses, strict=True)), "samples": len(records)}
    return trainee.under(trainee.teachers[best]), {"guide": about}
