"""A budget set: what each further budget freezes, and a router that learns from samples which of them an image needs.

A sample's loss under a budget is the KL of the first answer tokens to the full model, in nats, mean over questions: its
own and a few that other samples bring, for what one question loses says little of the image. It is heavy-tailed, so
that the router predicts the mean logarithm; what is reported is the loss itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokcarve.passes import ridge
from tokcarve.passes.budget import count_for
from tokcarve.passes.errors import MethodError
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.router import PREFIX, router_layer
from tokcarve.passes.routing import Losses, chosen, mean_tokens, price_for
from tokcarve.passes.stage import Frozen, Method
from tokcarve.recipes.calibration.bench import Bench
from tokcarve.recipes.calibration.freeze import freeze, is_open
from tokcarve.recipes.calibration.work import Candidate
from tokcarve.recipes.carve import method_of, name_of, params_of, rewritten
from tokcarve.recipes.manifest import RoutedPart, RouterRecord
from tokcarve.recipes.schema import Recipe

__all__ = ["Measured", "Part", "Routed", "check_set", "fit_router", "judged", "measure", "questions", "route"]

QUESTIONS = 4
"""Questions about an image, at most."""

FLOOR = 1e-2
"""Nats that are added before a logarithm: losses below are all nothing."""

MEANS = 33
"""Means, from the least count to the most, for which a record says the price."""


def check_set(recipe: Recipe, graphs: TokenGraphs) -> None:
    """Refuses, with graphs on the meta device, what makes no budget set: a method or its parameters left to samples,
    which would settle them for one count; a state between images; and counts that the method cannot plan."""
    name, counts, asked = recipe.method.name, recipe.budget.several, recipe.calibration
    said = f"{', '.join(map(str, counts))} tokens make a budget set"
    if name == "auto":
        raise MethodError(f"{said}, and method auto is for one count; name a method, or give one count")
    if asked is not None and (asked.trials is not None or asked.steps is not None):
        raise MethodError(f"{said}, which shares the method's parameters; leave --trials and --steps out")
    method = method_of(name, recipe.method.parameters)
    for tokens in counts:
        count_for(keep=None, tokens=tokens, total=graphs.geometry.total)
        if method.learns(graphs.geometry, tokens):
            raise MethodError(f"{said}, and {name} learns from samples what holds for one count; give one count")
        if method.decides(graphs.geometry, tokens) is not None:
            raise MethodError(
                f"{said}, and {name} leaves parameters to samples, which settle them for one count; fix them with "
                "--param, or give one count"
            )
        if rewritten(graphs, method, tokens, None, recipe.positions).graphs.asks:
            raise MethodError(f"{said}, and {name} keeps a state between images, which no router knows; give one count")


@dataclass(frozen=True, kw_only=True)
class Part:
    """One budget of a set and what calibration froze of it; `record` as for a budget alone, None where nothing was
    open."""

    tokens: int
    frozen: Frozen | None
    record: dict[str, Any] | None


@dataclass(frozen=True, kw_only=True)
class Routed:
    """All budgets of a set, rising, and their router: its record, and its tensors by name."""

    parts: tuple[Part, ...]
    record: RouterRecord
    tensors: dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What samples say, those held out last, behind the `learning` others: features [samples, features] of vision layer
    `layer`, losses [samples, budgets] in nats, and `wanted`, of the same shape: what a router shall predict."""

    features: NDArray[np.float64]
    wanted: Losses
    losses: Losses
    learning: int
    layer: int


def route(bench: Bench, method: Method, positions: str, counts: Sequence[int], target: int) -> Routed:
    """Freezes every budget of `counts`, rising, and fits their router for a mean of `target` tokens."""
    parts = tuple(_part(bench, method, tokens) for tokens in counts)
    line, record = fit_router(measure(bench, method, positions, parts), counts, target)
    tensors = {
        f"{PREFIX}weight": torch.from_numpy(line.weight).float().contiguous(),
        f"{PREFIX}bias": torch.from_numpy(line.bias).float().contiguous(),
    }
    return Routed(parts=parts, record=record, tensors=tensors)


def measure(bench: Bench, method: Method, positions: str, parts: Sequence[Part]) -> Measured:
    """Looks at every sample, and asks about it under every budget."""
    candidates = [
        Candidate(
            method=name_of(method),
            params=params_of(method),
            tokens=part.tokens,
            positions=positions,
            counts=None if part.frozen is None else part.frozen.counts,
        ).plain()
        for part in parts
    ]
    layer = router_layer(bench.geometry)
    said = [sample.prompt for sample in bench.set]
    looks = [{"do": "glimpse", "sample": sample, "layer": layer} for sample in bench.samples]
    features = np.array([record["features"] for record in bench.runner.map(looks, "looking at images")])
    asked = [
        {"do": "losses", "sample": sample, "prompts": prompts, "candidates": candidates}
        for part in (bench.learning, bench.held)
        for sample, prompts in zip(part, questions([said[sample] for sample in part]), strict=True)
    ]
    records = list(bench.runner.map(asked, f"comparing {len(parts)} budgets"))
    losses = np.array([np.mean(record["kl"], axis=0) for record in records])
    wanted = np.array([np.log(FLOOR + np.array(record["kl"])).mean(axis=0) for record in records])
    return Measured(features=features, wanted=wanted, losses=losses, learning=len(bench.learning), layer=layer)


def questions(prompts: Sequence[str | None]) -> list[list[str | None]]:
    """What is asked of each sample: its own prompt first, then those of the samples behind it, each once."""
    around = [[*prompts[place:], *prompts[:place]] for place in range(len(prompts))]
    return [list(dict.fromkeys(one))[:QUESTIONS] for one in around]


def _part(bench: Bench, method: Method, tokens: int) -> Part:
    if not is_open(method, bench.geometry, tokens):
        return Part(tokens=tokens, frozen=None, record=None)
    frozen, record = freeze(bench, method, tokens)
    return Part(tokens=tokens, frozen=frozen, record=record)


def fit_router(samples: Measured, counts: Sequence[int], target: int) -> tuple[ridge.Line, RouterRecord]:
    """The router by the samples that are not held out, judged on the others.

    Its penalty is the one that routes samples best that were left out, to the mean that is wanted and between all
    budgets. Prices are found on predictions for such samples, too, as those of new images will be.
    """
    learning = samples.learning
    known, shown = samples.wanted[:learning], samples.features[:learning]
    middles = [(more + less) / 2 for less, more in zip(counts, counts[1:], strict=False)]
    means = middles + [float(target)] * len(middles)
    guesses = {penalty: ridge.left_out(shown, known, penalty) for penalty in reversed(ridge.PENALTIES)}
    penalty = min(guesses, key=lambda one: sum(_cost(known, guesses[one], counts, mean) for mean in means))
    made, line = guesses[penalty], ridge.ridge(shown, known, penalty)
    explained = 1 - ridge.error(made, known) / max(ridge.error(known.mean(axis=0), known), 1e-30)
    others = [price_for(made, counts, mean) for mean in np.linspace(counts[0], counts[-1], MEANS)]
    found = {price: mean_tokens(made, counts, price) for price in others}
    price = price_for(made, counts, float(target))
    record = RouterRecord(
        layer=samples.layer,
        tokens=tuple(counts),
        mean_tokens=target,
        price=price,
        prices=tuple(sorted((mean, price) for price, mean in found.items())),
        penalty=penalty,
        explained=explained,
        held_out=judged(samples.losses[learning:], line(samples.features[learning:]), counts, price),
    )
    return line, record


def _cost(wanted: Losses, guessed: Losses, counts: Sequence[int], mean: float) -> float:
    """What routing by guesses comes to; a token spared below the mean is worth what it is between the extremes."""
    price = price_for(guessed, counts, mean)
    taken = chosen(guessed, counts, price)
    slope = (wanted[:, 0].mean() - wanted[:, -1].mean()) / (counts[-1] - counts[0])
    spared = mean - mean_tokens(guessed, counts, price)
    return float(wanted[np.arange(len(taken)), taken].mean() - slope * spared)


def judged(losses: Losses, predicted: Losses, counts: Sequence[int], price: float) -> RoutedPart:
    """What a router with these predictions does to samples of these losses, beside what else one could do."""
    taken = chosen(predicted, counts, price)
    shares = np.bincount(taken, minlength=len(counts)) / len(taken)
    mean = mean_tokens(predicted, counts, price)
    best = chosen(losses, counts, price_for(losses, counts, mean))
    each = np.arange(len(taken))
    return RoutedPart(
        images=len(taken),
        shares=tuple(shares.tolist()),
        mean_tokens=mean,
        loss=float(losses[each, taken].mean()),
        random=float((losses @ shares).mean()),
        oracle=float(losses[each, best].mean()),
        fixed=tuple(losses.mean(axis=0).tolist()),
    )
