"""A search over the hyper-parameters of a method: of equal budgets, the point that leaves the model most like itself.

The objective is that of VFlowOpt (arXiv:2508.05211): the cosine between the full and the carved model of the last
prompt row behind the final norm, its mean over samples. Optuna's tree of Parzen estimators proposes the points: it
needs NumPy alone, where its Gaussian process needs SciPy too, and gives the same points for the same seed and
objective. So a search that was interrupted is run again, and what the journal has of it is not computed again.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from tokcarve.passes.errors import MethodError, RecipeError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.stage import Method, Span
from tokcarve.recipes.budgets import mean_tokens, within
from tokcarve.recipes.calibration.bench import Bench
from tokcarve.recipes.calibration.work import Candidate
from tokcarve.recipes.carve import name_of, params_of, planned
from tokcarve.recipes.schema import Recipe

__all__ = ["TRIALS", "Found", "Search", "load_optuna", "search", "search_of"]

TRIALS = 50
FIRST = 10  # points drawn at random before what they gave guides the choice


@dataclass(frozen=True, kw_only=True)
class Search:
    """A method at its count, what may be varied of it, and at how many points; the method as it is is the first.

    `refuses(method, tokens)` raises MethodError for a point that may not be chosen.
    """

    method: Method
    tokens: int
    exact: bool
    positions: str
    space: Mapping[str, Span]
    trials: int
    refuses: Callable[[Method, int], None]

    def at(self, point: Mapping[str, float], geometry: Geometry) -> tuple[Method, int]:
        """The method and the count at a point; MethodError for one that may not be chosen."""
        method, tokens = self.method.at(point, geometry, self.tokens, exact=self.exact)
        self.refuses(method, tokens)
        return method, tokens

    def reads_pixels(self, geometry: Geometry) -> bool:
        """Whether a point far from the start reads the pixels."""
        corner = {name: span.high for name, span in self.space.items()}
        method, tokens = self.method.at(corner, geometry, self.tokens, exact=self.exact)
        try:
            return any("pixels" in stage.reads for stage in method.stages(geometry, tokens, None))
        except MethodError:
            return False

    def plain(self, method: Method, tokens: int) -> dict[str, Any]:
        """What a task says of a point."""
        candidate = Candidate(method=name_of(method), params=params_of(method), tokens=tokens, positions=self.positions)
        return candidate.plain()


@dataclass(frozen=True, kw_only=True)
class Found:
    """The best of a search, and what the manifest says of it."""

    method: Method
    tokens: int
    record: dict[str, Any]


def search_of(recipe: Recipe, method: Method, geometry: Geometry, tokens: int) -> Search | None:
    """The search that a recipe with samples asks for; None for a method that leaves nothing to search.

    What the recipe gives stays as it is: parameters that differ from the method's own, and those that its `pinned`
    names. MethodError for `trials` where there is nothing to search.
    """
    asked = recipe.calibration
    if asked is None:
        return None
    exact = recipe.budget.keep is not None or recipe.budget.tokens is not None
    whole = method.space(geometry, tokens, exact=exact)
    own = params_of(type(method)())
    given = {name for name, value in params_of(method).items() if value != own[name]} | set(asked.pinned or ())
    space = {name: span for name, span in whole.items() if (span.of or name) not in given and span.low < span.high}
    if not space:
        if asked.trials is not None:
            why = f"given are {', '.join(sorted(given))}" if whole else "its parameters are no matter of samples"
            raise MethodError(
                f"trials={asked.trials}, and {recipe.method.name} leaves nothing to search at {tokens} tokens ({why}); "
                "leave --trials out"
            )
        return None
    load_optuna()
    most = mean_tokens(method, geometry, tokens)

    def refuses(other: Method, count: int) -> None:
        planned(other, geometry, count, None, recipe.positions)
        if mean_tokens(other, geometry, count) > most + 1e-9 or not within(recipe.budget, other, geometry, count):
            raise MethodError("costs more than the method without a search; choose another point")

    trials = TRIALS if asked.trials is None else asked.trials
    return Search(
        method=method,
        tokens=tokens,
        exact=exact,
        positions=recipe.positions,
        space=space,
        trials=trials,
        refuses=refuses,
    )


def search(bench: Bench, wanted: Search) -> Found:
    """Tries the points and holds the best against the method as it is, on samples that were not searched on."""
    study, spans = _study(wanted, bench.set.seed)
    start = wanted.method, wanted.tokens
    own = _cosine(bench, bench.learning, wanted.plain(*start), "trying a point")
    study.add_trial(_told({name: span.start for name, span in wanted.space.items()}, wanted.space, spans, own))
    trials: list[dict[str, Any]] = [{"point": {n: span.start for n, span in wanted.space.items()}, "cosine": own}]
    best, value, place = start, own, 0
    for number in range(1, wanted.trials):
        bench.runner.tell("searching", number, wanted.trials)
        trial = study.ask(spans)
        point = {name: _short(trial.params[name], span) for name, span in wanted.space.items()}
        try:
            method, tokens = wanted.at(point, bench.geometry)
        except MethodError as error:
            study.tell(trial, state=load_optuna().trial.TrialState.PRUNED)
            trials.append({"point": point, "refused": str(error)})
            continue
        cosine = _cosine(bench, bench.learning, wanted.plain(method, tokens), "trying a point")
        study.tell(trial, cosine)
        trials.append({"point": point, "cosine": cosine})
        if cosine > value:
            best, value, place = (method, tokens), cosine, number
    held = [_cosine(bench, bench.held, wanted.plain(*one), "on samples held out") for one in (start, best)]
    record = {
        "sampler": "TPE",
        "optuna": version("optuna"),
        "space": {name: [span.low, span.high] for name, span in wanted.space.items()},
        "trials": trials,
        "best": place,
        "cosine": {"default": own, "best": value},
        "held_out": {"default": held[0], "best": held[1]},
    }
    return Found(method=best[0], tokens=best[1], record=record)


def load_optuna() -> Any:
    """Optuna, quiet; RecipeError where it is not installed."""
    try:
        import optuna
    except ModuleNotFoundError:
        raise RecipeError(
            "a search for hyper-parameters needs Optuna, which is not installed: pip install 'tokcarve[search]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _study(wanted: Search, seed: int) -> tuple[Any, dict[str, Any]]:
    """What proposes the points, and the space as it takes it."""
    optuna = load_optuna()
    sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=FIRST)
    spans = {name: optuna.distributions.FloatDistribution(span.low, span.high) for name, span in wanted.space.items()}
    return optuna.create_study(direction="maximize", sampler=sampler), spans


def _told(point: Mapping[str, float], space: Mapping[str, Span], spans: Mapping[str, Any], value: float) -> Any:
    """A trial that was not proposed; a default outside of the space counts as its nearest end."""
    inside = {name: min(max(point[name], span.low), span.high) for name, span in space.items()}
    return load_optuna().trial.create_trial(params=inside, distributions=dict(spans), value=value)


def _short(value: float, span: Span) -> float:
    """Five digits say enough, and people read them."""
    return min(max(float(f"{value:.5g}"), span.low), span.high)


def _cosine(bench: Bench, samples: Sequence[int], candidate: Mapping[str, Any], what: str) -> float:
    tasks = [{"do": "cosine", "sample": sample, "candidate": candidate} for sample in samples]
    found = [record["cosine"] for record in bench.runner.map(tasks, what)]
    return float(sum(found) / len(found))
