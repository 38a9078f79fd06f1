"""`--keep auto` and `--method auto`: what is chosen is what the losses say, and held-out samples have the last word."""

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from models import TOTAL, build, config, write

import tokcarve
from tokcarve.passes import families
from tokcarve.passes.checkpoint import open_directory
from tokcarve.passes.errors import BudgetError, MethodError
from tokcarve.passes.families.load import read_config
from tokcarve.passes.methods import METHODS
from tokcarve.recipes.artifact import read_artifact
from tokcarve.recipes.calibration.auto import best_method, losses, serving, smallest_count
from tokcarve.recipes.calibration.bench import Bench, bench_of
from tokcarve.recipes.calibration.decide import decide
from tokcarve.recipes.calibration.journal import Journal, Record, Task
from tokcarve.recipes.calibration.pool import Pool, Runner
from tokcarve.recipes.calibration.work import Candidate, Worker
from tokcarve.recipes.carve import name_of, params_of
from tokcarve.recipes.schema import Budget, Calibration

UNIFORM = METHODS["uniform"]()
Told = dict[Any, tuple[float, bool]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(build("qwen2", "clip", vision_layers=5, text_layers=3), tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Deep enough for methods that cut three times in the language model."""
    return write(build("qwen2", "clip", vision_layers=3, text_layers=8), tmp_path_factory.mktemp("deep") / "model")


def opened(base: Path) -> Bench:
    checkpoint = open_directory(base)
    return bench_of(checkpoint, families.geometry(read_config(checkpoint.path)), Calibration(count=12))


@pytest.fixture(scope="module")
def bench(base: Path) -> Bench:
    return opened(base)


class Losses(Pool):
    """Losses by count or method as a test says, (kl, same) on the samples that calibrate and on those held out; what
    else is asked, `real` does."""

    def __init__(self, learning: Told, held: Told, first: int, real: Pool) -> None:
        self.sides, self.first, self.real = (learning, held), first, real
        self.asked, self.made = list[tuple[bool, Any]](), dict[str, Any]()

    def imap(self, tasks: Iterable[Task]) -> Iterator[tuple[int, Record]]:
        for number, task in enumerate(tasks):
            if task["do"] != "likeness":
                yield number, self.real.here()(task)
                continue
            self.made |= {one["method"]: one for one in task["candidates"]}
            late = task["sample"] >= self.first
            found = []
            for one in task["candidates"]:
                key = one["tokens"] if one["tokens"] in self.sides[late] else one["method"]
                self.asked.append((late, key))
                kl, same = self.sides[late][key]
                found.append({"kl": kl, "same": same, "cosine": 1.0})
            yield number, {"likeness": found}

    def close(self) -> None:
        pass


def told(bench: Bench, learning: dict[Any, float], held: dict[Any, float] | None = None) -> tuple[Bench, Losses]:
    sides = ({key: (kl, True) for key, kl in one.items()} for one in (learning, held if held is not None else learning))
    pool = Losses(*sides, len(bench.learning), bench.runner.pool)
    return replace(bench, runner=Runner(pool, Journal(None, {}))), pool


def test_losses_are_means_of_what_ask_and_likeness_give(bench: Bench, base: Path) -> None:
    candidates = [Candidate(method="uniform", params={}, tokens=n) for n in (TOTAL, 16, 8)]
    found = losses(bench, candidates, range(3), "")
    pool = bench.runner.pool
    worker: Worker = pool.worker  # type: ignore[attr-defined]
    by_hand = [
        [worker({"do": "likeness", "sample": i, "candidates": [one.plain()]})["likeness"][0] for i in range(3)]
        for one in candidates
    ]
    for loss, records in zip(found, by_hand, strict=True):
        assert loss.kl == pytest.approx(sum(one["kl"] for one in records) / 3)
        assert loss.changed == sum(not one["same"] for one in records) / 3 and loss.samples == 3
    assert found[0].kl < 1e-9 and found[0].changed == 0, "with nothing dropped it is the full model"
    assert found[1].kl > 1e-6 and found[2].kl > 1e-6


def falling(least: int) -> dict[int, float]:
    """Loss 0.01 from `least` tokens on, and 0.5 below."""
    return {count: 0.01 if count >= least else 0.5 for count in range(8, TOTAL, 8)}


@pytest.mark.parametrize("least", [8, 16, 24, 40, 48, 56])
def test_the_smallest_count_is_found_between_the_steps(bench: Bench, least: int) -> None:
    small, _ = told(bench, falling(least))
    choice = smallest_count(small, UNIFORM, 0.02, "renumbered")
    assert choice.tokens == least
    curve = choice.record["auto"]["curve"]
    assert [one["tokens"] for one in curve] == sorted(one["tokens"] for one in curve)
    assert all(one["kl"] == (0.01 if one["tokens"] >= least else 0.5) for one in curve)


def test_a_larger_count_that_fails_ends_the_way_down(bench: Bench) -> None:
    small, _ = told(bench, falling(8) | {32: 0.5})
    assert smallest_count(small, UNIFORM, 0.02, "renumbered").tokens == 40


def test_held_out_samples_have_the_last_word(bench: Bench) -> None:
    small, pool = told(bench, falling(16), falling(48))
    choice = smallest_count(small, UNIFORM, 0.02, "renumbered")
    assert choice.tokens >= 48
    assert [one["kl"] for one in choice.record["auto"]["held_out"]][-1] == 0.01
    assert all(key >= 16 for late, key in pool.asked if late)


def test_both_measures_must_stay_within_the_limit(bench: Bench) -> None:
    small, pool = told(bench, falling(16))
    pool.sides[0].update({count: (0.0, count >= 40) for count in pool.sides[0]})
    assert smallest_count(small, UNIFORM, 0.02, "renumbered").tokens == 40


def test_both_measures_must_stay_within_the_limit_on_held_out_samples(bench: Bench) -> None:
    small, pool = told(bench, falling(16))
    pool.sides[1].update({count: (0.0, count >= 40) for count in pool.sides[1]})
    assert smallest_count(small, UNIFORM, 0.02, "renumbered").tokens == 48


def test_who_is_passed_over_and_why() -> None:
    geometry = families.geometry(config("qwen2", "clip", vision_layers=5, text_layers=8))
    found = serving(geometry, Budget(tokens=16), "renumbered")
    assert found.passed_over["vla_pruner"] == "it needs a state from whoever runs it"
    assert found.passed_over["random"] == "its choice is random"
    assert "learns from samples" in found.passed_over["prune_and_merge"]
    assert {"fastv", "uniform", "hiprune"} <= {name_of(method) for method, _ in found.able}


def test_what_cannot_be_met_says_the_best(bench: Bench) -> None:
    small, _ = told(bench, {count: 1 / count for count in range(8, TOTAL, 8)})
    wish = r"max_loss=0.001 cannot be met by uniform grid below 64 tokens on scenes: the best is \d+ tokens with a KL"
    with pytest.raises(BudgetError, match=wish):
        smallest_count(small, UNIFORM, 0.001, "renumbered")
    small, _ = told(bench, falling(8), dict.fromkeys(range(8, TOTAL, 8), 0.3))
    with pytest.raises(BudgetError, match="the best is 8 tokens with a KL of 0.3 nats"):
        smallest_count(small, UNIFORM, 0.02, "renumbered")


def test_a_method_that_learns_per_count_is_refused(bench: Bench) -> None:
    with pytest.raises(MethodError, match="learns from samples at one count, so it cannot be tried at many"):
        smallest_count(bench, METHODS["prune_and_merge"](), 0.1, "renumbered")


def test_the_best_method_is_the_best_on_all_samples(bench: Bench) -> None:
    learning = {name: 0.5 for name in METHODS} | {"uniform": 0.1, "hiprune": 0.12, "pooling": 0.14}
    held = dict.fromkeys(METHODS, 0.0) | {"uniform": 0.3, "hiprune": 0.1, "pooling": 0.2}
    small, pool = told(bench, learning, held | {name: 0.4 for name in METHODS if name not in learning})
    pool.sides[1].update({name: (0.4, True) for name in METHODS if name not in ("uniform", "hiprune", "pooling")})
    small = replace(small, quantile=None)
    choice = best_method(small, serving(bench.geometry, Budget(tokens=16), "renumbered"), "renumbered")
    assert type(choice.method) is METHODS["hiprune"] and choice.tokens == 16
    lines = choice.record["auto"]["methods"]
    assert [line["method"] for line in lines[:3]] == ["uniform", "hiprune", "pooling"]
    assert len(choice.record["auto"]["held_out"]) == 5
    assert set(choice.record["auto"]["passed_over"]) >= {"none", "random", "prune_and_merge", "vla_pruner"}


@pytest.mark.parametrize("name", ["visiondrop", "todre"])
def test_methods_are_compared_as_samples_decide_them(deep: Path, name: str) -> None:
    bench = opened(deep)
    small, pool = told(bench, {one: 0.1 if one == name else 0.5 for one in METHODS})
    choice = best_method(small, serving(bench.geometry, Budget(tokens=16), "renumbered"), "renumbered")
    assert choice.method == METHODS[name]() and choice.tokens == 16
    settled, record = decide(small, METHODS[name](), 16, "renumbered")
    assert pool.made[name]["params"] == json.loads(json.dumps(params_of(settled))), "not with its own defaults"
    assert record["decided"]["fixed"]


def test_a_count_left_to_samples_is_tried_as_samples_decide_the_rest(deep: Path, tmp_path: Path) -> None:
    automatic = carve(deep, tmp_path, "a", method="visiondrop", keep="auto", max_loss=9.0, count=8, samples="scenes")
    tokens = read_artifact(automatic).manifest.budget.tokens
    named = carve(deep, tmp_path, "b", method="visiondrop", tokens=tokens, count=8, samples="scenes")
    one, other = (read_artifact(place).manifest for place in (automatic, named))
    assert one.method == other.method and one.schedule == other.schedule
    for key in ("decided", "proof"):
        assert one.calibration is not None and other.calibration is not None
        assert one.calibration[key] == other.calibration[key]


def carve(base: Path, place: Path, out: str, **settings: Any) -> Path:
    with contextlib.chdir(place):
        return tokcarve.compress(str(base), out=out, **settings).directory


def test_artifacts_are_the_same_bytes_twice_and_export_reads_them(base: Path, tmp_path: Path) -> None:
    settings = {"method": "flowcut", "keep": "auto", "max_loss": 5.0, "count": 8, "samples": "scenes"}
    first, second = (carve(base, tmp_path, out, **settings) for out in ("a", "b"))
    assert (first / "tokcarve.json").read_bytes() == (second / "tokcarve.json").read_bytes()
    manifest = read_artifact(first).manifest
    assert manifest.budget.asked == {"keep": "auto", "max_loss": 5.0} and manifest.budget.tokens == 8
    assert manifest.calibration is not None and manifest.calibration["counts"]
    frozen = {entry.site: entry.keep for entry in manifest.schedule}
    assert all(frozen.get(site, n) == n for site, n in manifest.calibration["counts"].items())


def test_an_automatic_method_is_written_as_what_it_is(base: Path, tmp_path: Path) -> None:
    place = carve(base, tmp_path, "a", method="auto", tokens=16, count=4)
    found = read_artifact(place)
    record = found.manifest.calibration
    assert record is not None and found.recipe.method.name == "auto"
    held = {one["method"]: one["kl"] for one in record["auto"]["held_out"]}
    overall = {
        one["method"]: 3 * one["kl"] + held[one["method"]] for one in record["auto"]["methods"] if one["method"] in held
    }
    assert found.manifest.method.name == min(overall, key=lambda name: overall[name])
    assert json.loads((place / "tokcarve.json").read_text())["budget"]["tokens"] == 16


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "uniform", "keep": "auto"}, "keep=auto was given alone; give both"),
        ({"method": "uniform", "tokens": 8, "max_loss": 0.1}, "max_loss=0.1 was given without keep=auto; give both"),
        ({"method": "uniform", "keep": "auto", "max_loss": 0.0}, "max_loss=0.0 allows nothing; choose more than 0"),
        ({"method": "auto", "keep": "auto", "max_loss": 0.1}, "both the method and the count were left to auto"),
        ({"method": "auto", "tokens": 8, "params": {"a": 1}}, "method auto has no parameters, and a was given"),
        ({"method": "auto", "tokens": 65}, "tokens=65 does not fit the 64 visual tokens of this model; choose 1..64"),
        ({"method": "auto", "avg_tokens": 65}, "no method serves this budget on this model"),
    ],
)
def test_refusals(base: Path, tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises((BudgetError, MethodError), match=words):
        carve(base, tmp_path, "a", **settings)
    assert list(tmp_path.iterdir()) == []
