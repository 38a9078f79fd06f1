"""What was decided is recorded, repeated, and compared with what it replaces."""

import contextlib
import statistics
from pathlib import Path
from typing import Any

import pytest
from deciding import COUNT, LAYERS, asked, bench, hired, write_base
from models import TOTAL, build

import tokcarve
from tokcarve.cli.compress import manifest_facts
from tokcarve.passes.asking import ask
from tokcarve.passes.methods import METHODS
from tokcarve.recipes.artifact import read_artifact
from tokcarve.recipes.calibration.decide import decide, looks_of
from tokcarve.recipes.calibration.proof import prove
from tokcarve.recipes.calibration.work import ANSWER_TOKENS, Candidate, Worker
from tokcarve.recipes.carve import carve as recarve
from tokcarve.recipes.carve import name_of, params_of


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def worker(base: Path) -> Worker:
    return hired(bench(base))


CASES: dict[str, dict[str, Any]] = {
    "as_vit": {"tokens": 16},
    "dyvte": {"tokens": TOTAL},
    "todre": {"tokens": 16, "params": {"threshold": 0.6}},
    "visiondrop": {"tokens": 16, "params": {"layers": (0, 1, 3)}},
    "redundancylens": {"tokens": TOTAL, "params": {"window": 8}},
    "atp_llava": {"tokens": 8, "params": {"form": "budget", "layers": (0, 1, 3)}},
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_decided_is_written_and_repeated(base: Path, tmp_path: Path, name: str) -> None:
    def made(out: str) -> Path:
        with contextlib.chdir(tmp_path):
            return tokcarve.compress(
                str(base), method=name, samples=str(base.parent / "samples.jsonl"), count=COUNT, out=out, **CASES[name]
            ).directory

    first = made("a")
    if name in ("as_vit", "dyvte", "todre"):  # one that counts, one that tries, one that looks
        assert (first / "tokcarve.json").read_bytes() == (made("b") / "tokcarve.json").read_bytes()
    artifact = read_artifact(first)
    record = artifact.manifest.calibration
    assert record is not None and record["decided"]["samples"] == 6 and record["proof"]["samples"] == 2
    fixed, params = record["decided"]["fixed"], artifact.manifest.method.params
    assert fixed and all(
        params[key] == (tuple(value) if isinstance(value, list) else value) for key, value in fixed.items()
    )
    settled = METHODS[name](**params)
    assert settled.decides(artifact.manifest.geometry, artifact.manifest.budget.tokens) is None
    carved = recarve(build("llama", "clip", text_layers=LAYERS), artifact)
    assert [stage.site for stage in carved.schedule] == [stage.site for stage in artifact.manifest.schedule]
    text = manifest_facts(artifact.manifest)["calibration"]
    assert all(f"{key}={value}" in text for key, value in fixed.items())
    assert "by the mean of 6 samples" in text and "on 2 held-out samples" in text


def test_a_method_with_nothing_open_stays_as_it_is(base: Path) -> None:
    for method in (METHODS["dyvte"](layer=1), METHODS["todre"](exit=False), METHODS["vtc_cls"]()):
        assert decide(bench(base), method, 16, "renumbered") == (method, {})


def test_what_freezing_costs_is_what_its_parts_say(base: Path, worker: Worker, tmp_path: Path) -> None:
    stand, method = bench(base), METHODS["dyvte"]()
    settled, _ = decide(stand, method, TOTAL, "renumbered")
    found = prove(stand, method, settled, TOTAL, None, "renumbered")
    decision = method.decides(stand.geometry, TOTAL)
    assert decision is not None and found["against"] == "the form that decides per image"
    kl: list[list[float]] = []
    for sample in stand.held:
        own = decision.settle(looks_of(stand, decision, method, TOTAL, "renumbered", [sample]))[0]
        pair = [Candidate(method=name_of(one), params=params_of(one), tokens=TOTAL).plain() for one in (settled, own)]
        kl.append([one["kl"] for one in worker({"do": "likeness", "sample": sample, "candidates": pair})["likeness"]])
    frozen, other = ([pair[i] for pair in kl] for i in range(2))
    assert found["kl"]["frozen"] == pytest.approx(statistics.mean(frozen))
    assert found["kl"]["other"] == pytest.approx(statistics.mean(other))
    assert found["kl"]["difference"][0] == pytest.approx(statistics.mean(frozen) - statistics.mean(other))
    assert "accuracy" in found


def test_an_answer_is_right_or_wrong_or_not_known(base: Path, worker: Worker, tmp_path: Path) -> None:
    plain = Candidate(method="none", params={}, tokens=TOTAL).plain()
    other = Candidate(method="uniform", params={}, tokens=4).plain()

    def spoken(sample: int) -> str:
        said = ask(worker.graphs, worker.question(sample), ANSWER_TOKENS).tokens
        assert not {*said} & {*worker.graphs.geometry.eos_token_ids}
        return worker.asker.prompter.decode(said)

    order = {worker.sample(i).source: i for i in range(COUNT)}
    heard = {int(Path(source).stem): spoken(i) for source, i in order.items()}
    known = [f"  {heard[i].upper()} " if i % 2 else None for i in range(COUNT)]
    again = hired(bench(base, asked(tmp_path, known)))
    for number in range(COUNT):
        place = int(Path(again.sample(number).source).stem)
        right = again({"do": "right", "sample": number, "candidates": [plain, other]})["right"]
        assert right == ([True, False] if place % 2 else None)
