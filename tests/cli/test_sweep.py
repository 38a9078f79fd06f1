"""`tokcarve sweep` on a small random model: files, going on after an interruption, what is refused, and the page."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import open_page
from device_shell import on_a_device
from models import build, write
from PIL import Image
from refusals import refused
from typer.testing import CliRunner, Result

from tokcarve.cli.main import app
from tokcarve.exporters.sweeping.work import Sweeper, SweepJob
from tokcarve.passes.errors import ExportError

SORT = """
const table = document.querySelector('table.sortable');
const names = () => [...table.tBodies[0].rows].map((row) => row.cells[1].textContent).join(' ');
const heads = [...table.querySelectorAll('button')];
heads.find((one) => one.textContent === 'tokens').click();
document.body.dataset.falling = names();
heads.find((one) => one.textContent === 'tokens').click();
document.body.dataset.rising = names();
document.querySelector('.plotted .mark').dispatchEvent(new Event('focus'));
document.body.dataset.tip = [...document.querySelectorAll('.tip')].pop().textContent;
"""


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["sweep", *map(str, words)])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint and questions about two pictures."""
    folder = tmp_path_factory.mktemp("sweep")
    write(build(text_layers=4), folder / "small")
    rng = np.random.default_rng(0)
    for name in "ab":
        Image.fromarray(rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    lines = [{"image": f"{n}.png", "question": q, "answer": "red"} for n, q in (("a", "what is it?"), ("b", "why?"))]
    (folder / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def words(place: Path, *more: object, out: str = "out") -> list[object]:
    asked = ["--data", place / "asked.jsonl", "--no-gate", "--tokens", "16"]
    return [place / "small", "--methods", "vtc_cls,fastv", *asked, "-o", out, *more]


@pytest.fixture(scope="module")
def done(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, dict[str, Any]]]:
    out = tmp_path_factory.mktemp("done") / "out"
    made = run(*words(place, "--json", out=str(out)))
    assert made.exit_code == 0, made.stderr
    yield out, json.loads(made.stdout)


def test_every_point_is_there_with_controls_and_files(done: tuple[Path, dict[str, Any]]) -> None:
    out, fields = done
    assert list(fields)[:6] == ["format", "verb", "out", "model", "revision", "weights_mib"]
    points = [(one["method"], one["tokens"]) for one in fields["points"]]
    assert points == [("none", 64), *((name, 16) for name in ("vtc_cls", "fastv", "random", "uniform"))]
    assert {path.name for path in out.iterdir()} == {
        "report.html", "pareto.svg", "pareto.png", "sweep.json", "points.jsonl",
    }  # fmt: skip
    assert json.loads((out / "sweep.json").read_text())["points"] == fields["points"]
    fastv = next(one for one in fields["points"] if one["method"] == "fastv")
    assert fastv["entering"] == 64 and 16 < fastv["mean"] < 64 and fastv["encoder"] == 1.0
    assert fields["gate"]["ignored"] and fields["environment"]["versions"]["torch"]
    assert len((out / "points.jsonl").read_text().splitlines()) == 6


def test_nothing_is_computed_twice(
    place: Path, done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(job: SweepJob) -> Sweeper:
        raise AssertionError("a point was computed again")

    before = (done[0] / "points.jsonl").read_bytes()
    monkeypatch.setattr(SweepJob, "open", never)
    again = run(*words(place, "--json", out=str(done[0])))
    assert again.exit_code == 0 and json.loads(again.stdout)["points"] == done[1]["points"]
    assert (done[0] / "points.jsonl").read_bytes() == before


def test_ray_finds_the_same_points(place: Path, done: tuple[Path, dict[str, Any]]) -> None:
    pytest.importorskip("ray")
    made = run(*words(place, "--on", "ray", "--json"))
    assert made.exit_code == 0, made.stderr
    assert json.loads(made.stdout)["points"] == done[1]["points"]


def test_an_interrupted_sweep_goes_on(
    place: Path, done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    whole = Sweeper.__call__

    def counting(worker: Sweeper, task: dict[str, Any]) -> dict[str, Any]:
        calls.append(f"{task['method']} {task['tokens']}")
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(worker, task)

    monkeypatch.setattr(Sweeper, "__call__", counting)
    stopped = run(*words(place))
    assert stopped.exit_code == 130 and "the same command goes on" in stopped.stderr
    assert [path.name for path in Path("out").iterdir()] == ["points.jsonl"]
    with Path("out/points.jsonl").open("a") as stream:
        stream.write('{"task": "cut sho')
    went_on = run(*words(place, "--json"))
    assert went_on.exit_code == 0, went_on.stderr
    assert json.loads(went_on.stdout)["points"] == done[1]["points"]
    assert len(calls) == len(set(calls)) + 1 == 6, "the one in hand was done again, no other"


def test_points_of_other_questions_are_not_gone_on_with(place: Path, done: tuple[Path, dict[str, Any]]) -> None:
    Path("out").mkdir()
    Path("out/points.jsonl").write_bytes((done[0] / "points.jsonl").read_bytes())
    assert "questions was" in refused("sweep", *words(place, "--limit", 1))
    Path("out/points.jsonl").write_text("something else\n")
    assert "it is no file of points" in refused("sweep", *words(place))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--methods": "vtc_class"}, "unknown method 'vtc_class', did you mean 'vtc_cls'"),
        ({"--methods": ","}, "names no method"),
        ({"--methods": "covipal"}, "no point is possible: covipal learns from samples"),
        ({"--steps": "3"}, "--steps 3 is about training on samples"),
        ({"--samples": "nowhere"}, "sample set nowhere does not exist"),
        ({"--methods": "vla_pruner"}, "no point is possible: vla_pruner keeps a state"),
        ({"--tokens": "16,x"}, "--tokens 16,x is no list of counts"),
        ({"--tokens": "65"}, "tokens=65 does not fit the 64 visual tokens"),
        ({"--tokens": "64"}, "--tokens 64 drops nothing"),
        ({"--limit": "0"}, "--limit 0 leaves no question"),
        ({"--data": "nothing.jsonl"}, "nothing.jsonl does not exist"),
        ({"--on": "mars"}, "--on mars is no place to work"),
        ({"--measure": None, "--on": "ray"}, "--measure takes times here"),
        ({"-o": "file"}, "file is a file"),
        ({"-o": "folder"}, "folder holds files and no points.jsonl"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(place: Path, change: dict[str, str | None], message: str) -> None:
    Path("file").write_text("")
    Path("folder").mkdir()
    Path("folder/mine.txt").write_text("")
    given: dict[str, object] = {"--methods": "vtc_cls", "--tokens": "16", "--data": place / "asked.jsonl", "-o": "out"}
    pairs = [part for name, value in {**given, **change}.items() for part in (name, value) if part is not None]
    assert message in refused("sweep", place / "small", *pairs)


def test_measured_points_have_times(
    place: Path, done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(model: str, method: str, params: dict[str, Any], tokens: int, calibration: None) -> dict[str, Any]:
        return {"first_token": {"pruned": 12.25, "unpruned": 50.0, "speedup": 4.125}}

    monkeypatch.setattr("tokcarve.exporters.sweeping.work._measured", measured)
    Path("out").mkdir()
    Path("out/points.jsonl").write_bytes((done[0] / "points.jsonl").read_bytes())
    made = run(*words(place, "--measure", "--json"))
    assert made.exit_code == 0, made.stderr
    plain, *rest = json.loads(made.stdout)["points"]
    assert plain["measured"] is None and all(one["measured"]["first_token"]["speedup"] == 4.125 for one in rest)
    report = Path("out/report.html").read_text()
    assert report.count("12.2 <span") == 4 and report.count("4.12×") == 4 and "--measure --no-gate --seed 0" in report
    assert "first token ms" not in (done[0] / "report.html").read_text()


def test_a_point_that_cannot_be_timed_stops_no_other(
    place: Path, done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = list[str]()

    def measured(model: str, method: str, params: dict[str, Any], tokens: int, calibration: None) -> dict[str, Any]:
        tried.append(method)
        if method == "random":
            raise ExportError("random cannot be exported today")
        return {"first_token": {"pruned": 12.25, "unpruned": 50.0, "speedup": 4.125}}

    monkeypatch.setattr("tokcarve.exporters.sweeping.work._measured", measured)
    Path("out").mkdir()
    Path("out/points.jsonl").write_bytes((done[0] / "points.jsonl").read_bytes())
    made = run(*words(place, "--measure"))
    assert made.exit_code == 0 and "not timed: random at " in made.stdout
    record = json.loads(Path("out/sweep.json").read_text())
    assert set(record["untimed"].values()) == {"random cannot be exported today"}
    times = {one["method"]: one["measured"] for one in record["points"]}
    assert times["random"] is None and times["uniform"] is not None
    assert "Points that were not timed" in Path("out/report.html").read_text()
    tried.clear()
    assert run(*words(place, "--measure")).exit_code == 0
    assert set(tried) == {"random"}, "what failed is tried again, and nothing else"


def test_samples_decide_what_methods_leave_open(place: Path) -> None:
    asked = ["--methods", "prune_and_merge,flowcut", "--data", place / "asked.jsonl", "--tokens", "16", "--no-gate"]
    assumed = run(place / "small", *asked, "-o", "out", "--json")
    assert [one.split()[0] for one in json.loads(assumed.stdout)["refused"]] == ["prune_and_merge"]
    samples = ["--samples", "scenes", "--sample-count", 4]
    assert "calibration was None" in refused("sweep", place / "small", *asked, *samples, "-o", "out")
    made = run(place / "small", *asked, *samples, "-o", "decided", "--json")
    assert made.exit_code == 0, made.stderr
    fields = json.loads(made.stdout)
    assert fields["calibration"]["count"] == 4 and not fields["refused"]
    assert {"prune_and_merge", "flowcut"} < {one["method"] for one in fields["points"]}
    report = Path("decided/report.html").read_text()
    assert "decided by 4 samples (scenes)" in report and "--sample-count 4" in report
    # every point again on its own: what samples decided is decided by the same ones, and the gate stays ignored
    alone = [line for line in report.splitlines() if "tokcarve compress" in line or "tokcarve eval" in line]
    assert alone and all("--no-gate" in line for line in alone if "tokcarve eval" in line)
    wanted = {one["method"]: one["method"] not in ("random", "uniform") for one in fields["points"] if one["front"]}
    for method, sampled in wanted.items():
        said = [line for line in alone if f"--method {method} " in line]
        assert said and all(("--samples scenes --limit 4" in line) == sampled for line in said), method


def test_an_unpruned_model_that_fails_stops_it(place: Path) -> None:
    made = run(*[word for word in words(place) if word != "--no-gate"])
    assert made.exit_code == 2 and "does not clear the gate" in made.stderr and not Path("out/report.html").exists()


def test_without_torch_it_names_the_extra(place: Path) -> None:
    made = on_a_device("sweep", *words(place))
    assert made.returncode == 2 and "pip install 'tokcarve[compress]'" in made.stderr and not Path("out").exists()


def test_points_that_cannot_be_are_listed(place: Path, done: tuple[Path, dict[str, Any]]) -> None:
    mixed = [word if word != "vtc_cls,fastv" else "vtc_cls,fastv,dyvte" for word in words(place, out=str(done[0]))]
    made = run(*mixed)
    assert made.exit_code == 0 and "not possible: dyvte at 16: dyvte keeps all 64" in made.stdout
    assert "dyvte keeps all 64" in (done[0] / "report.html").read_text()


def test_the_report_in_a_browser(done: tuple[Path, dict[str, Any]]) -> None:
    opened = open_page(done[0] / "report.html", script=SORT)
    assert opened.console == ()
    tables = re.findall(r"<tbody>(.*?)</tbody>", opened.dom, re.S)
    assert [table.count("<tr") for table in tables][:2] == [5, 5]
    told = {name: re.search(rf'<body[^>]*data-{name}="([^"]*)"', opened.dom) for name in ("falling", "rising", "tip")}
    assert told["falling"] and told["falling"][1].split() == ["64", "16", "16", "16", "16"]
    assert told["rising"] and told["rising"][1].split() == ["16", "16", "16", "16", "64"]
    assert told["tip"] and "tokens" in told["tip"][1] and opened.dom.count('class="mark"') == 5
    assert opened.dom.count('class="gallery"') == 1
