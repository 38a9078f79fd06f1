"""The search: from the defaults on, at an equal mean, the same again after an interruption, and what it refuses."""

import contextlib
import functools
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from models import TOTAL, build, write
from typer.testing import CliRunner

from tokcarve.cli.compress import manifest_facts
from tokcarve.cli.main import app
from tokcarve.passes import families
from tokcarve.passes.asking import ask
from tokcarve.passes.checkpoint import resolve
from tokcarve.passes.errors import MethodError, RecipeError, TokcarveError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.inputs.samples import open_samples
from tokcarve.passes.methods import METHODS
from tokcarve.passes.methods.hiprune import HiPrune
from tokcarve.passes.methods.vflowopt import VFlowOpt
from tokcarve.passes.stage import Method
from tokcarve.recipes.artifact import Artifact
from tokcarve.recipes.budgets import mean_tokens, resolve_budget
from tokcarve.recipes.calibration import work
from tokcarve.recipes.calibration.bench import How, bench_of
from tokcarve.recipes.calibration.search import search, search_of
from tokcarve.recipes.calibration.work import Candidate, Job, Worker
from tokcarve.recipes.carve import carve, method_of, rewritten
from tokcarve.recipes.compress import compress_recipe
from tokcarve.recipes.make import make_recipe
from tokcarve.recipes.schema import Budget, Recipe

pytest.importorskip("optuna")

TRIALS, COUNT = 8, 5
SETTINGS: dict[str, Any] = {"method": "vflowopt", "tokens": 24, "samples": "scenes", "count": COUNT, "trials": TRIALS}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write(_model(), tmp_path_factory.mktemp("base") / "model"))


@pytest.fixture(scope="module")
def searched(base: str, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return compress(base, tmp_path_factory.mktemp("searched"))


def _model() -> Any:
    return build("qwen2", "clip", vision_layers=3, text_layers=3)


def compress(base: str, place: Path, out: str = "artifact", resume: bool = False, **settings: Any) -> Artifact:
    recipe = make_recipe(base, **{**SETTINGS, **settings})
    return compress_recipe(recipe, out=place / out, how=How(resume=resume))


def run(
    base: str, journal: Path | None = None, resume: bool = False, **settings: Any
) -> tuple[dict[str, Any], Method, int]:
    """The search alone: its record, the best method, its count."""
    return run_recipe(make_recipe(base, **{**SETTINGS, **settings}), journal, resume)


def run_recipe(recipe: Recipe, journal: Path | None = None, resume: bool = False) -> tuple[dict[str, Any], Method, int]:
    """The same of a recipe."""
    method = method_of(recipe.method.name, recipe.method.parameters)
    tokens = resolve_budget(recipe.budget, method, _geometry())
    wanted = search_of(recipe, method, _geometry(), tokens)
    assert wanted is not None and recipe.calibration is not None
    bench = bench_of(resolve(recipe.model), _geometry(), recipe.calibration, How(resume=resume), journal)
    with contextlib.closing(bench.runner.pool):
        found = search(bench, wanted)
    return found.record, found.method, found.tokens


def said(artifact: Artifact) -> dict[str, Any]:
    record = artifact.manifest.calibration
    assert record is not None
    found: dict[str, Any] = record["search"]
    return found


def worker(base: str) -> Worker:
    samples = open_samples("scenes", count=COUNT, seed=0)
    job = Job(checkpoint=resolve(base).path, samples="scenes", count=COUNT, seed=0, sha256=samples.sha256)
    return Worker(job)


def refused(base: str, place: Path, words: str, kind: type[TokcarveError] = MethodError, **settings: Any) -> None:
    with pytest.raises(kind, match=words):
        compress(base, place, **settings)
    assert list(place.iterdir()) == []


class TestFound:
    def test_the_defaults_are_the_first_trial_and_never_lost_to(self, searched: Artifact) -> None:
        record = said(searched)
        first, own = record["trials"][0], METHODS["vflowopt"]()
        assert len(record["trials"]) == TRIALS
        assert {name: first["point"][name] for name in ("threshold", "alpha", "cell")} == {
            name: getattr(own, name) for name in ("threshold", "alpha", "cell")
        }
        cosines = [trial["cosine"] for trial in record["trials"] if "cosine" in trial]
        assert first["cosine"] == record["cosine"]["default"] == cosines[0]
        assert max(cosines) == record["cosine"]["best"] == record["trials"][record["best"]]["cosine"]
        assert record["best"] > 0 and len(set(cosines)) > TRIALS // 2, "the search must have moved"

    def test_the_best_point_is_what_the_artifact_holds(self, searched: Artifact, base: str) -> None:
        record, manifest = said(searched), searched.manifest
        point, params = record["trials"][record["best"]]["point"], manifest.method.params
        assert {name: params[name] for name in ("threshold", "alpha", "cell")} == {
            name: point[name] for name in ("threshold", "alpha", "cell")
        }
        assert manifest.budget.tokens == 24 and manifest.schedule[-1].keep == 24
        result = carve(_model(), searched)
        assert [entry.keep for entry in result.schedule] == [entry.keep for entry in manifest.schedule]
        assert manifest.schedule[0].keep == pytest.approx(point["entering"] * TOTAL, abs=1)

    def test_cosines_are_those_of_the_last_prompt_row(self, searched: Artifact, base: str) -> None:
        record, made = said(searched), worker(base)
        ways = {
            "default": METHODS["vflowopt"](),
            "best": method_of("vflowopt", dict(searched.manifest.method.params)),
        }
        for way, method in ways.items():
            carved = rewritten(made.graphs, method, 24, None).graphs
            cosines = []
            for number in range(COUNT):
                question = made.question(number)
                one, other = (ask(graphs, question, 1).hidden.double() for graphs in (made.graphs, carved))
                cosines.append(float((one @ other) / (one.norm() * other.norm())))
            assert record["cosine"][way] == pytest.approx(sum(cosines[:4]) / 4, abs=1e-9)
            assert record["held_out"][way] == pytest.approx(cosines[4], abs=1e-9)

    @pytest.mark.parametrize("budget", [{"tokens": 24}, {"tokens": None, "avg_tokens": 24}], ids=["count", "mean"])
    def test_equal_mean_whatever_is_chosen(self, base: str, budget: dict[str, Any]) -> None:
        record, method, tokens = run(base, **budget)
        plain = METHODS["vflowopt"]()
        asked = Budget(**{name: value for name, value in budget.items() if value is not None})
        most = mean_tokens(plain, _geometry(), resolve_budget(asked, plain, _geometry()))
        assert record["best"] > 0 and most - 1 < mean_tokens(method, _geometry(), tokens) <= most
        assert ("ratios.0" in record["space"]) == ("avg_tokens" in budget)

    def test_a_refused_point_is_a_trial_that_is_not_chosen(self, base: str) -> None:
        record, _, _ = run(base, tokens=10, trials=12)
        lost = [trial for trial in record["trials"] if "refused" in trial]
        assert lost and all("recycles into" in trial["refused"] for trial in lost)
        assert "cosine" in record["trials"][record["best"]]

    def test_a_point_that_costs_more_is_refused(self, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
        def spends(
            self: Method, point: Mapping[str, float], geometry: Geometry, tokens: int, *, exact: bool
        ) -> tuple[Method, int]:
            return HiPrune(**point), tokens + 1

        monkeypatch.setattr(HiPrune, "at", spends)
        record, _, _ = run(base, method="hiprune", trials=3)
        assert record["best"] == 0
        assert [trial.get("refused", "")[:10] for trial in record["trials"]] == ["", "costs more", "costs more"]

    def test_what_no_cosine_can_be_taken_of_counts_as_nothing(self, base: str) -> None:
        made = worker(base)
        made.hidden = lambda number: torch.full((48,), torch.nan, dtype=torch.float64)  # type: ignore[assignment]
        candidate = Candidate(method="vflowopt", params={}, tokens=24).plain()
        assert made({"do": "cosine", "sample": 0, "candidate": candidate}) == {"cosine": 0.0}

    def test_one_line_says_what_came_of_it(self, searched: Artifact) -> None:
        record, line = said(searched), manifest_facts(searched.manifest)["calibration"]
        assert f"{TRIALS} trials (" in line
        assert f"from {record['cosine']['default']:.4f} to {record['cosine']['best']:.4f}, on samples held out" in line


class TestAgain:
    def test_another_run_gives_the_same_bytes(self, searched: Artifact, base: str, tmp_path: Path) -> None:
        again = compress(base, tmp_path)
        for name in ("tokcarve.json", "recipe.yaml"):
            assert (again.directory / name).read_bytes() == (searched.directory / name).read_bytes()

    def test_another_seed_tries_other_points(self, searched: Artifact, base: str) -> None:
        record, _, _ = run(base, seed=1)
        points = [[trial["point"] for trial in one["trials"]] for one in (said(searched), record)]
        assert points[0][0] == points[1][0] and points[0][1:] != points[1][1:]

    @pytest.mark.parametrize("after", [0, 3, 4, 18])
    def test_an_interrupted_search_goes_on(
        self, after: int, searched: Artifact, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done = list[int]()
        real = work.TASKS["cosine"]

        def counted(worker: Worker, sample: int, candidate: Mapping[str, Any]) -> dict[str, Any]:
            if len(done) == after and not (tmp_path / "stopped").exists():
                (tmp_path / "stopped").touch()
                raise KeyboardInterrupt
            done.append(sample)
            return real(worker, sample, candidate)

        monkeypatch.setitem(work.TASKS, "cosine", counted)
        with pytest.raises(KeyboardInterrupt):
            run(base, journal=tmp_path / "journal")
        assert len(done) == after
        record, _, _ = run(base, journal=tmp_path / "journal", resume=True)
        assert record == said(searched)
        assert len(done) == sum("cosine" in trial for trial in record["trials"]) * 4 + 2, "nothing is done twice"


class TestPinned:
    def test_what_was_given_stays(self, base: str, tmp_path: Path) -> None:
        params = {"alpha": 0.0, "threshold": 20.0}
        found = compress(base, tmp_path, params=params, trials=4)
        assert set(said(found)["space"]) == {"cell", "entering"}
        assert {name: found.manifest.method.params[name] for name in params} == params
        assert run_recipe(found.recipe)[0] == said(found), "the complete recipe pins the same"

    def test_the_complete_recipe_pins_nothing_that_was_not_given(self, searched: Artifact) -> None:
        assert run_recipe(searched.recipe)[0] == said(searched)

    def test_given_ratios_settle_what_enters(self, base: str) -> None:
        record, method, _ = run(base, params={"ratios": [0.9, 0.8]}, trials=3)
        assert set(record["space"]) == {"threshold", "alpha", "cell"}
        assert isinstance(method, VFlowOpt) and method.ratios == (0.9, 0.8)


class TestRefused:
    def test_no_trials(self, base: str, tmp_path: Path) -> None:
        words = "calibration.trials: Input should be greater than or equal to 1, got 0"
        refused(base, tmp_path, words, RecipeError, trials=0)
        done = CliRunner().invoke(
            app, ["compress", base, "--method", "vflowopt", "--tokens", "24", "--samples", "scenes", "--trials", "0"]
        )
        assert done.exit_code == 2 and "calibration.trials: Input should be greater than or equal to 1" in done.stderr

    def test_trials_without_samples(self, base: str) -> None:
        done = CliRunner().invoke(app, ["compress", base, "--method", "vflowopt", "--tokens", "24", "--trials", "5"])
        assert done.exit_code == 2 and "--trials 5 is about samples, and there are none" in done.stderr

    def test_trials_for_a_method_without_a_space(self, base: str, tmp_path: Path) -> None:
        for method in ("vtc_cls", "flowcut"):
            words = rf"trials=8, and {method} leaves nothing to search at 24 tokens .*; leave --trials out"
            refused(base, tmp_path, words, method=method)

    def test_trials_where_something_else_is_decided(self, base: str, tmp_path: Path) -> None:
        refused(base, tmp_path, "trials=8 .* there is none with auto", tokens=None, keep="auto", max_loss=0.1)
        refused(base, tmp_path, "trials=8 .* there is none with auto", method="auto")
        refused(base, tmp_path, "shares the method's parameters; leave --trials", tokens=[16, 24])

    def test_trials_with_everything_given(self, base: str, tmp_path: Path) -> None:
        params = {"threshold": 1.0, "alpha": 0.0, "cell": 4.0, "ratios": [0.5, 0.5]}
        refused(base, tmp_path, r"given are alpha, cell, ratios, threshold", params=params)
        words = "leaves nothing open to calibrate .*; leave --samples out"
        refused(base, tmp_path, words, params=params, trials=None)

    def test_without_optuna_the_extra_is_named(
        self, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "optuna", None)
        refused(base, tmp_path, r"needs Optuna, which is not installed: pip install 'tokcarve\[search\]'", RecipeError)
        assert compress(base, tmp_path, samples=None, count=None, trials=None).manifest.calibration is None

    def test_pixels_that_cannot_be_turned_back(self, tmp_path: Path) -> None:
        place = write(_model(), tmp_path / "model")
        settings = json.loads((place / "preprocessor_config.json").read_text())
        (place / "preprocessor_config.json").write_text(json.dumps({**settings, "image_mean": [0.0, 0.0, 0.0]}))
        (tmp_path / "out").mkdir()
        refused(str(place), tmp_path / "out", "choose parameters that read no pixels")
        found = compress(str(place), tmp_path / "out", params={"alpha": 0.0}, trials=1)
        assert set(said(found)["space"]) == {"threshold", "cell", "entering"} and said(found)["best"] == 0


@functools.cache
def _geometry() -> Geometry:
    return families.capture(_model()).geometry
