"""Training a module with the base frozen: it lowers the loss, resumes bit for bit, and says what it is worth."""

import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from models import TOTAL, build, write
from safetensors.torch import load_file
from torch import Tensor

import tokcarve
from tokcarve.passes import families
from tokcarve.passes.checkpoint import Checkpoint, open_directory
from tokcarve.passes.errors import MethodError, RecipeError, SampleError
from tokcarve.passes.families.load import read_config
from tokcarve.passes.methods.atp_llava import ATPLlava, ThresholdHeads
from tokcarve.passes.methods.covipal import CoViPAL, Scorer
from tokcarve.passes.stage import Frozen, Method
from tokcarve.passes.trainee import Trial
from tokcarve.recipes.artifact import read_artifact
from tokcarve.recipes.calibration.bench import Bench, How, bench_of
from tokcarve.recipes.calibration.freeze import freeze, is_open
from tokcarve.recipes.calibration.train import _adamw, _Course, train
from tokcarve.recipes.schema import Calibration

SMALL = CoViPAL(blocks=1, width=16)
GUIDED = CoViPAL(blocks=1, width=16, guide_layer=2)
METHODS: dict[str, Method] = {"covipal": SMALL, "atp_llava": ATPLlava(layers=(0, 1, 2), width=4)}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    model = build("llama", vision_layers=3, text_layers=4)
    return open_directory(write(model, tmp_path_factory.mktemp("base") / "model"))


@contextlib.contextmanager
def opened(base: Checkpoint, journal: Path | None = None, **asked: Any) -> Any:
    resume = bool(asked.pop("resume", False))
    tell = asked.pop("tell", None)
    geometry = families.capture(families.empty(read_config(base.path))).geometry
    settings = Calibration(**{"samples": "scenes", "count": 8, "steps": 6, **asked})
    bench = bench_of(base, geometry, settings, How(resume=resume, tell=tell), journal)
    try:
        yield bench
    finally:
        bench.runner.journal.close(done=False)


def trained(bench: Bench, method: Method = SMALL, tokens: int = 8) -> tuple[Frozen, dict[str, Any]]:
    return freeze(bench, method, tokens)


def digest(model: Any) -> str:
    held = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        held.update(name.encode() + weight.numpy().tobytes())
    return held.hexdigest()


def test_adamw_is_torchs() -> None:
    draw = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(3, 4, generator=draw))
    oracle = torch.optim.AdamW([weight], lr=0.01, weight_decay=0.01)
    state = {"w": weight.detach().clone(), "w|1": torch.zeros(3, 4), "w|2": torch.zeros(3, 4), "idle": torch.ones(2)}
    for step in range(1, 6):
        slope = 0.1 * torch.randn(3, 4, generator=draw)
        weight.grad = slope.clone()
        oracle.step()
        state |= _adamw(state, {"w": slope, "idle": None}, step, 0.01)
        torch.testing.assert_close(state["w"], weight.detach(), atol=1e-6, rtol=1e-5)
    assert torch.equal(state["idle"], torch.ones(2))
    start = {"w": torch.zeros(1), "w|1": torch.zeros(1), "w|2": torch.zeros(1)}
    # a gradient longer than one is shortened to one
    assert float(_adamw(start, {"w": torch.tensor([8.0])}, 1, 0.1)["w|1"]) == pytest.approx(0.1)


class Quick(Scorer):
    """In larger steps."""

    rate = 1e-2


def test_training_lowers_the_loss_and_leaves_the_base_alone(base: Checkpoint) -> None:
    with opened(base, steps=40, count=4) as bench:
        model = bench.runner.pool.here().model
        before = digest(model)
        frozen, record = train(bench, GUIDED, Quick(GUIDED, bench.geometry, 8), 8, "renumbered")
        assert digest(model) == before
        assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    loss, curve = record["training"]["loss"], record["training"]["curve"]
    assert loss["end"] < 0.8 * loss["start"] and loss["held_out"] < loss["held_out_before"]
    assert (len(curve), curve[0], curve[-1]) == (8, pytest.approx(loss["start"]), pytest.approx(loss["end"]))
    assert record["tensors"]["head.weight"] == [1, 16] and record["counts"] == {} == frozen.counts
    assert all(one.dtype == torch.float32 and not one.requires_grad for one in frozen.tensors.values())


def test_the_report_is_of_held_out_samples(base: Checkpoint) -> None:
    with opened(base) as bench:
        told = list[str]()
        bench.runner.tell = lambda what, done, total: told.append(what)
        report = trained(bench)[1]["report"]
    assert report["samples"] == 2 == len(bench.held)
    assert report["plain"] == {"method": "vtc_cls", "params": {"layers": 1}, "tokens": 8} | {
        name: report["plain"][name] for name in ("kl", "loyalty")
    }
    for one in (report["trained"], report["plain"]):
        assert one["kl"] > 0 and one["loyalty"] in (0, 0.5, 1)
    assert {"training", "measuring the loss", "comparing with plain top-k", "measuring the carved model"} <= set(told)


def test_counts_are_settled_at_the_same_mean(base: Checkpoint) -> None:
    method = METHODS["atp_llava"]
    with opened(base) as bench:
        frozen, record = trained(bench, method)
        planned = method.trainable(bench.geometry, 8)
    assert isinstance(planned, ThresholdHeads)
    wanted = planned.planned
    assert dict(frozen.counts) == record["counts"] and list(frozen.counts) == list(wanted)
    assert sum(frozen.counts.values()) == sum(wanted.values()), "one layer lies behind each cut"
    assert list(frozen.counts.values())[-1] == 8
    # all tokens in the first layer
    assert record["report"]["plain"]["tokens"] == round((TOTAL + sum(wanted.values())) / 4)


class Stop(Exception):
    """An interruption."""


@pytest.mark.parametrize(("name", "after"), [("covipal", 1), ("covipal", 4), ("atp_llava", 4)])
def test_resumed_is_as_if_never_interrupted(base: Checkpoint, tmp_path: Path, name: str, after: int) -> None:
    with opened(base, count=4, steps=4) as bench:
        whole, record = trained(bench, METHODS[name])
    journal = tmp_path / "journal.jsonl"

    def stop(what: str, done: int, total: int) -> None:
        if what == "training" and done == after:
            raise Stop

    with opened(base, journal, tell=stop, count=4, steps=4) as bench, pytest.raises(Stop):
        trained(bench, METHODS[name])
    seen = list[tuple[str, int]]()
    again = {"resume": True, "tell": lambda what, done, total: seen.append((what, done)), "count": 4, "steps": 4}
    with opened(base, journal, **again) as bench:
        resumed, record_again = trained(bench, METHODS[name])
    assert [done for what, done in seen if what == "training"] == list(range(after, 5))
    assert record == record_again and whole.counts == resumed.counts
    assert list(whole.tensors) == list(resumed.tensors)
    assert all(torch.equal(one, resumed.tensors[key]) for key, one in whole.tensors.items())


def test_another_plan_is_not_resumed(base: Checkpoint, tmp_path: Path) -> None:
    journal = tmp_path / "journal.jsonl"

    def stop(what: str, done: int, total: int) -> None:
        if what == "training" and done == 1:
            raise Stop

    with opened(base, journal, tell=stop) as bench, pytest.raises(Stop):
        trained(bench)
    for tokens, steps, method in ((9, 6, SMALL), (8, 7, SMALL), (8, 6, CoViPAL(blocks=1, width=16, guide=2.0))):
        with (
            opened(base, journal, resume=True, steps=steps) as bench,
            pytest.raises(SampleError, match="another method"),
        ):
            trained(bench, method, tokens)


def test_samples_come_in_turn_and_in_another_order(base: Checkpoint) -> None:
    with opened(base) as bench:
        course = _Course(bench, bench.runner.pool.here(), Scorer(SMALL, bench.geometry, 8), "renumbered")
        rounds = [[course._sample(6 * again + step) for step in range(6)] for again in range(3)]
    assert all(sorted(one) == list(bench.learning) for one in rounds)
    assert rounds[0] != rounds[1] or rounds[1] != rounds[2]


class Lost(Scorer):
    """Its loss is no number from the third step on."""

    steps = 0

    def loss(self, trial: Trial) -> Tensor:
        self.steps += 1
        return super().loss(trial) * (torch.nan if self.steps > 2 else 1)


def test_a_loss_that_is_no_number_is_refused(base: Checkpoint) -> None:
    with opened(base) as bench:
        lost = Lost(SMALL, bench.geometry, 8)
        with pytest.raises(MethodError, match=r"the loss of training is nan at step 2 on sample \d of scenes; train"):
            train(bench, SMALL, lost, 8, "renumbered")


def test_too_few_samples_are_refused(base: Checkpoint) -> None:
    with pytest.raises(SampleError, match="holds 3 images; calibration needs 4"), opened(base, count=3):
        pass


def test_what_trains_is_open_to_calibration(base: Checkpoint) -> None:
    with opened(base) as bench:
        assert is_open(SMALL, bench.geometry, 8) and not is_open(SMALL, bench.geometry, TOTAL)


def compress(base: Checkpoint, out: Path, method: str, **settings: Any) -> Path:
    params: Mapping[str, Any] = {"blocks": 1, "width": 16} if method == "covipal" else {"width": 4}
    chosen = {"samples": "scenes", "count": 4, "steps": 2, "tokens": 8, "params": params, **settings}
    with contextlib.chdir(out.parent):
        return tokcarve.compress(str(base.path), method=method, out=out.name, **chosen).directory


@pytest.mark.parametrize(
    ("method", "budget"),
    [("covipal", {"tokens": 8}), ("atp_llava", {"tokens": None, "avg_tokens": 30})],
)
def test_an_artifact_holds_what_was_trained(
    base: Checkpoint, tmp_path: Path, method: str, budget: dict[str, Any]
) -> None:
    first, second = (compress(base, tmp_path / name, method, **budget) for name in ("first", "second"))
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert Path("modules.safetensors") in files
    same = (file for file in files if file.name != "made.json")
    assert all((first / file).read_bytes() == (second / file).read_bytes() for file in same)
    manifest = read_artifact(first).manifest
    assert manifest.calibration is not None
    shapes = {name: list(one.shape) for name, one in load_file(first / "modules.safetensors").items()}
    assert manifest.calibration["tensors"] == shapes
    assert manifest.calibration["training"]["steps"] == 2
    counts = manifest.calibration["counts"]
    assert {stage.site: stage.keep for stage in manifest.schedule}.items() <= (counts or {"connector": 8}).items()
    if "avg_tokens" in budget:
        assert abs(manifest.numbers.tokens_mean - 30) < 1
    tokcarve.load(first)


@pytest.mark.parametrize("method", METHODS)
def test_compress_without_samples_is_refused(base: Checkpoint, tmp_path: Path, method: str) -> None:
    said = f"method {method} learns its module from samples; pass --samples"
    for budget in ({}, {"tokens": None, "avg_tokens": 30}):
        with pytest.raises(MethodError, match=said):
            compress(base, tmp_path / "out", method, samples=None, count=None, steps=None, **budget)
    assert not (tmp_path / "out").exists()


def test_steps_are_about_training(base: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(
        MethodError, match="method flowcut trains nothing, and steps=2 is about training; leave --steps"
    ):
        compress(base, tmp_path / "out", "flowcut", params={})
    with pytest.raises(RecipeError, match="steps"):
        compress(base, tmp_path / "out", "covipal", steps=0)
