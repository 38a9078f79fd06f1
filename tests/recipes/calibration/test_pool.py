"""Tasks are done once and in order, whoever does them; a lost worker on Ray costs time and nothing else."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import pytest
from models import build, write

from tokcarve.passes import families
from tokcarve.passes.checkpoint import open_directory
from tokcarve.passes.errors import RecipeError, SampleError
from tokcarve.passes.families.load import read_config
from tokcarve.recipes.calibration.bench import Bench, How, bench_of
from tokcarve.recipes.calibration.journal import Journal, Record, Task
from tokcarve.recipes.calibration.pool import Local, Pool, Runner, pool_of
from tokcarve.recipes.calibration.work import Candidate, Job, Worker
from tokcarve.recipes.schema import Calibration

TASKS = [{"do": "x", "sample": i} for i in range(5)]


class Backwards(Pool):
    """Does the last task first, and remembers what it was given."""

    def __init__(self) -> None:
        self.given: list[Task] = []

    def imap(self, tasks: Iterable[Task]) -> Iterator[tuple[int, Record]]:
        self.given = list(tasks)
        for number in reversed(range(len(self.given))):
            yield number, {"of": self.given[number]["sample"]}

    def close(self) -> None:
        pass


def test_records_are_in_order_and_kept_as_they_come(tmp_path: Path) -> None:
    told = list[tuple[str, int, int]]()
    journal = Journal(tmp_path / "j", {})
    runner = Runner(Backwards(), journal, lambda *words: told.append(words))
    found = runner.map(TASKS, "counting")
    assert next(found) == {"of": 0}
    journal.close(done=False)
    assert Journal(tmp_path / "j", {}, resume=True).get(TASKS[4]) == {"of": 4}
    assert [record["of"] for record in found] == [1, 2, 3, 4]
    assert told[0] == ("counting", 0, 5) and told[-1] == ("counting", 5, 5)


def test_what_the_journal_has_is_not_done_again(tmp_path: Path) -> None:
    first = Journal(tmp_path / "j", {})
    first.put(TASKS[1], {"of": "kept"})
    first.close(done=False)
    pool = Backwards()
    runner = Runner(pool, Journal(tmp_path / "j", {}, resume=True))
    assert [record["of"] for record in runner.map(TASKS, "")] == [0, "kept", 2, 3, 4]
    assert [task["sample"] for task in pool.given] == [0, 2, 3, 4]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(build("qwen2", "clip", vision_layers=5, text_layers=2), tmp_path_factory.mktemp("base") / "model")


def bench_on(base: Path, on: str, count: int = 8) -> Bench:
    checkpoint = open_directory(base)
    geometry = families.geometry(read_config(checkpoint.path))
    return bench_of(checkpoint, geometry, Calibration(count=count), How(on=on))


def work(bench: Bench) -> list[Task]:
    exact = Candidate(method="flowcut", params={"form": "exact"}, tokens=16).plain()
    plain = Candidate(method="uniform", params={}, tokens=16).plain()
    counts = [{"do": "counts", "sample": i, "candidate": exact} for i in bench.samples]
    return [*counts, *({"do": "likeness", "sample": i, "candidates": [plain, exact]} for i in bench.samples)]


def test_a_worker_is_made_when_there_is_work(base: Path) -> None:
    bench = bench_on(base, "local")
    pool = bench.runner.pool
    assert isinstance(pool, Local) and pool.worker is None
    assert list(bench.runner.map([], "")) == [] and pool.worker is None
    next(bench.runner.map(work(bench), ""))
    assert pool.worker is not None
    pool.close()
    assert pool.worker is None


def test_the_split_is_three_to_one(base: Path) -> None:
    bench = bench_on(base, "local", 9)
    assert (bench.learning, bench.held) == (range(7), range(7, 9))
    assert bench.record["held_out"] == 2


def actors() -> list[psutil.Process]:
    """The workers of the cluster that runs under this process."""
    below = psutil.Process().children(recursive=True)
    return [one for one in below if one.is_running() and "ray::_Actor" in " ".join(one.cmdline())]


def test_ray_finds_what_a_worker_here_finds_though_one_is_killed(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_worker_niceness", "0")  # beside other tests a nice worker waits for minutes
    here = bench_on(base, "local")
    expected = list(here.runner.map(work(here), ""))
    there = bench_on(base, "ray")
    try:
        found = there.runner.map(work(there), "")
        first = [next(found) for _ in range(3)]
        pool = there.runner.pool
        lost = actors()[0]
        lost.kill()
        assert [*first, *found] == expected
        again = [actor.run.remote(work(there)[0]) for actor in pool.actors]  # type: ignore[attr-defined]
        assert pool.ray.get(again) == [expected[0]] * len(again)  # type: ignore[attr-defined]
        assert len(actors()) == len(again) and lost not in actors(), "another has come in its place"
        with pytest.raises(KeyError):
            list(there.runner.map([{"do": "nonsense", "sample": 0}], ""))
    finally:
        there.runner.pool.close()
    assert pool.actors == []  # type: ignore[attr-defined]


def test_other_samples_elsewhere_are_refused(base: Path) -> None:
    job = Job(checkpoint=base, samples="scenes", count=4, seed=0, sha256="0" * 64)
    with pytest.raises(SampleError, match=r"holds other samples here \(sha256 .*\) than where the work was given out"):
        Worker(job)


@pytest.mark.parametrize("on", ["cluster", "localhost", "Ray", ""])
def test_other_places_are_refused(base: Path, on: str) -> None:
    job = Job(checkpoint=base, samples="scenes", count=4, seed=0, sha256="0" * 64)
    with pytest.raises(RecipeError, match=f"--on {on} is no place to work; choose local, ray, or ray:ADDRESS"):
        pool_of(on, job)


def test_a_cluster_that_is_not_there_is_refused(base: Path) -> None:
    job = Job(checkpoint=base, samples="scenes", count=4, seed=0, sha256="0" * 64)
    with pytest.raises(RecipeError, match=r"--on ray cannot reach 127.0.0.1:1 .*; give local"):
        pool_of("ray:127.0.0.1:1", job)
