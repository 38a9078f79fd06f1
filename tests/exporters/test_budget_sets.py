"""Several budgets in one artifact: exported over one weight file, routed alike in both runtimes, measured, refused."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported import MAX_NEW, MAX_TEXT
from models import build, pictures, write
from PIL import Image
from typer.testing import CliRunner

import tokcarve
from tokcarve.cli.main import app
from tokcarve.exporters.device.answer import Answerer
from tokcarve.exporters.device.face import EXPORT, check_files, file_record, read_export, seal
from tokcarve.exporters.device.route import Choice, Wish, price_of, route_in_ort
from tokcarve.exporters.evaluation import Evaluation, evaluate
from tokcarve.exporters.evaluation.report import markdown
from tokcarve.exporters.export import ExportResult, export_artifact
from tokcarve.exporters.faces.kind import Request
from tokcarve.exporters.recheck import recheck
from tokcarve.passes.errors import ArtifactError, BudgetError, ExportError
from tokcarve.passes.families.load import read_model
from tokcarve.passes.inputs.images import load_image_processor
from tokcarve.passes.routing import chosen
from tokcarve.recipes.artifact import Artifact, read_artifact
from tokcarve.recipes.carve import carve, router_of

COUNTS = (8, 24)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A random model with FlowCut to 8 or 24 tokens, exported; do not write to it."""
    place = tmp_path_factory.mktemp("sets")
    write(build("qwen2", "clip", vision_layers=4, text_layers=2), place / "base")
    with contextlib.chdir(place):
        found = tokcarve.compress(
            "base", method="flowcut", params={"form": "static"}, tokens=(24, 8), count=8, out="artifact"
        )
    return found


@pytest.fixture(scope="module")
def result(made: Artifact) -> ExportResult:
    return export_artifact(made.directory, Request(max_text=MAX_TEXT + 16, max_new=MAX_NEW + 10))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "one.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
    return path


def told(*words: object) -> dict[str, Any]:
    """What a command says with --json."""
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == 0, done.stderr
    fields: dict[str, Any] = json.loads(done.stdout)
    return fields


def test_the_manifest_describes_the_largest_and_lists_the_others(made: Artifact) -> None:
    manifest = made.manifest
    assert manifest.budget.tokens == 24 and [one.tokens for one in manifest.budgets] == [8]
    assert manifest.budget.asked == {"tokens": COUNTS, "mean_tokens": 16}
    assert manifest.counts == COUNTS
    assert [one.kv_rows for one in manifest.budgets] == [(8, 8)] and manifest.kv_rows == (24, 24)
    assert all(one.calibration is not None and "counts" in one.calibration for one in manifest.budgets)
    router = manifest.router
    assert router is not None and router.tokens == COUNTS and router.mean_tokens == 16
    assert router.held_out.images == 2 and sum(router.held_out.shares) == pytest.approx(1)
    assert made.recipe.budget.several == COUNTS and made.recipe.calibration is not None


def test_every_budget_is_carved_as_recorded(made: Artifact) -> None:
    model = read_model(made.open_base().path)
    for count in COUNTS:
        graphs = carve(model, made, count).graphs
        assert graphs.vision(pictures(1))[0].shape[1] == count
    assert carve(model, made).graphs.vision(pictures(1))[0].shape[1] == 24
    with pytest.raises(BudgetError, match="tokens=12 is no budget of this artifact; choose one of 8, 24"):
        carve(model, made, 12)


def test_one_budget_says_nothing_of_sets(result: ExportResult, made: Artifact) -> None:
    with contextlib.chdir(made.directory.parent):
        one = tokcarve.compress("base", method="vtc_cls", tokens=16, out="one")
    stored = json.loads((one.directory / "tokcarve.json").read_text())
    assert not {"budgets", "router"} & set(stored) and stored["modules"] is None
    record = result.record.model_copy(update={"budgets": (), "router": None})
    assert not {"budgets", "router"} & set(record.model_dump())
    with pytest.raises(BudgetError, match="--mean-tokens 16 is about a budget set"):
        Wish(mean_tokens=16).named(one.manifest)
    assert Wish().named(one.manifest) == Wish(tokens=16).named(one.manifest) == 16


def test_graphs_of_every_budget_over_one_weight_file(result: ExportResult, made: Artifact) -> None:
    names = ("vision", "embedding", "prefill", "decode")
    ends = ("", ".k8")
    graphs = {f"{name}{end}.onnx" for name in names for end in ends} | {f"baseline.{name}.onnx" for name in names}
    golden = {"golden.npz", "golden.k8.npz"}
    folder = {f"onnx/{name}" for name in (*graphs, "router.onnx", "weights.data")}
    assert set(result.record.files) == folder | golden
    check_files(made.directory, read_export(made.directory))
    base = sum(weight.numel() * 4 for weight in read_model(made.open_base().path).parameters())
    assert result.weight_bytes < 1.2 * base
    checks = {check.name: check for check in result.record.checks}
    for side in ("pruned", "pruned to 8", "unpruned"):
        assert checks[f"{side}: kept indices"].passed and checks[f"{side}: greedy tokens"].passed
    assert checks["router: predicted losses"].passed


def test_verify_knows_what_the_router_predicted(result: ExportResult, tmp_path: Path) -> None:
    artifact = Path(shutil.copytree(result.directory.parent, tmp_path / "copy"))
    checks = {check.name: check for check in recheck(artifact).checks}
    assert checks["router: predicted losses"].passed and checks["pruned to 8: kept indices"].passed
    golden, record = artifact / EXPORT / "golden.npz", read_export(artifact)
    arrays = dict(np.load(golden))
    np.savez(golden, **arrays | {"losses": arrays["losses"] + 0.1})
    files = record.files | {"golden.npz": file_record(golden)}
    (artifact / EXPORT / "export.json").write_text(seal(record.model_copy(update={"files": files})))
    assert [check.name for check in recheck(artifact).failed] == ["router: predicted losses"]


def test_the_record_describes_every_budget(result: ExportResult) -> None:
    record = result.record
    assert record.pruned.tokens == 24 and [(one.budget, one.tokens) for one in record.budgets] == [(8, 8)]
    assert record.side(False, 8).rows == (MAX_TEXT + 16 + 8,) * 2
    assert record.side(False, 24) is record.pruned and record.side(True, 8) is record.baseline
    with pytest.raises(BudgetError, match="tokens=9 is no budget of this export; choose one of 8, 24"):
        record.side(False, 9)


def test_both_runtimes_choose_alike(result: ExportResult, made: Artifact) -> None:
    router, record = router_of(read_model(made.open_base().path), made), made.manifest.router
    assert router is not None and record is not None
    for seed in range(4):
        pixels = pictures(1, seed=seed)
        with torch.no_grad():
            losses = router(pixels).numpy()
        choice = route_in_ort(made.directory, pixels.numpy(), None, None)
        assert np.allclose(choice.predicted, losses[0], atol=1e-4)
        assert choice.tokens == COUNTS[chosen(losses.astype(np.float64), COUNTS, record.price)[0]]


def test_another_mean_is_another_price(result: ExportResult, made: Artifact) -> None:
    record = made.manifest.router
    assert record is not None
    pixels = pictures(1).numpy()
    assert route_in_ort(made.directory, pixels, 8, None).tokens == 8
    assert route_in_ort(made.directory, pixels, 24, None).tokens == 24
    assert price_of(record, 8) > price_of(record, 24)
    with pytest.raises(BudgetError, match="--mean-tokens 25 is no mean of 8, 24 tokens; choose 8..24"):
        price_of(record, 25)


@pytest.mark.parametrize("runtime", ["ort", "torch"])
def test_run_routes_or_takes_the_budget_that_was_named(
    result: ExportResult, made: Artifact, picture: Path, runtime: str
) -> None:
    words = ("run", made.directory, "--image", picture, "--prompt", "Hi", "--max-new", 2, "--runtime", runtime)
    routed = told(*words)
    assert routed["router"]["budgets"] == list(COUNTS) and len(routed["router"]["predicted"]) == 2
    assert len(routed["kept_indices"]) == routed["router"]["tokens"]
    named = told(*words, "--tokens", 8)
    assert "router" not in named and len(named["kept_indices"]) == 8
    assert told(*words, "--mean-tokens", 24)["router"]["tokens"] == 24


def test_a_conversation_is_routed_once(result: ExportResult, made: Artifact, picture: Path) -> None:
    words = ("run", made.directory, "--image", picture, "--prompt", "a", "--prompt", "b", "--max-new", 1)
    for runtime in ("ort", "torch"):
        said = told(*words, "--runtime", runtime, "--mean-tokens", 8)
        assert said["router"]["tokens"] == 8 and len(said["kept_indices"]) == 8


def test_every_budget_answers_as_its_own_graphs(result: ExportResult, made: Artifact, picture: Path) -> None:
    image = Image.open(picture).convert("RGB")
    kept = {count: Answerer(made.directory, budget=count).answer([image], ["a"], 1).kept_indices for count in COUNTS}
    assert {count: one.shape[1] for count, one in kept.items()} == {count: count for count in COUNTS}
    assert Answerer(made.directory).side.tokens == 24


@pytest.mark.parametrize("runtime", ["ort", "torch"])
def test_an_evaluation_asks_the_budget_that_each_image_gets(
    result: ExportResult, made: Artifact, tmp_path: Path, runtime: str
) -> None:
    count, words = 6, ("what", "where")
    images, routes = load_image_processor(made.processor), list[Choice]()
    with (tmp_path / "asked.jsonl").open("w") as stream:
        for number in range(count):
            drawn = np.random.default_rng(number).integers(0, 255 if number % 2 else 90, (64, 64, 3), np.uint8)
            Image.fromarray(drawn).save(tmp_path / f"{number}.png")
            pixels = images([Image.open(tmp_path / f"{number}.png").convert("RGB")])
            routes.append(route_in_ort(made.directory, pixels, None, None))
            for word in words:
                line = {"image": f"{number}.png", "question": f"{word} is it?", "answer": "x"}
                stream.write(json.dumps(line) + "\n")
    # at some mean between what the images are worth both budgets are chosen
    router, ids = made.manifest.router, [one.predicted for one in routes]
    assert router is not None
    means = [m for m in range(8, 25) if np.ptp(chosen(np.array(ids), COUNTS, price_of(router, m)))]
    assert means, "no mean at which these images are told apart"

    def answered(**settings: Any) -> Evaluation:
        return evaluate(
            made, data=tmp_path / "asked.jsonl", max_new=2, gate=False, controls=None, runtime=runtime, **settings
        )

    routed = answered(mean_tokens=means[0])
    budgets = {tokens: answered(tokens=tokens).lines() for tokens in COUNTS}
    places = chosen(np.array(ids), COUNTS, price_of(router, means[0]))
    expected = [budgets[COUNTS[int(places[i // len(words)])]][i]["said"]["pruned"] for i in range(count * len(words))]
    assert [line["said"]["pruned"] for line in routed.lines()] == expected
    side = routed.record()["sides"]["pruned"]
    share = float(np.mean(places))
    assert side["shares"] == {"8": pytest.approx(1 - share), "24": pytest.approx(share)}
    assert side["tokens"] == round(8 + 16 * share) and "visual tokens on average" in routed.record()["verdict"]
    assert 0 < share < 1 and "8: " in markdown(routed.record())


def test_profile_measures_every_budget_and_the_router(result: ExportResult, made: Artifact) -> None:
    fields = told("profile", made.directory, "--repeats", 1, "--warm-up", 0, "--answers", 2)
    assert [one["budget"] for one in fields["budgets"]] == list(COUNTS)
    assert [one["tokens"]["pruned"] for one in fields["budgets"]] == list(COUNTS)
    router, held = fields["router"], made.manifest.router
    assert held is not None and router["shares"] == list(held.held_out.shares)
    assert router["mean_tokens"] == held.held_out.mean_tokens
    spent = [one["stages"]["prefill"]["pruned"]["p50_ms"] for one in fields["budgets"]]
    assert router["expected"]["prefill"] == pytest.approx(np.dot(router["shares"], spent))
    first = [one["stages"]["first_token"]["pruned"]["p50_ms"] for one in fields["budgets"]]
    assert router["expected"]["first_token"] == pytest.approx(np.dot(router["shares"], first) + router["p50_ms"])


def test_a_router_that_was_changed_is_noticed(made: Artifact, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(made.directory, tmp_path / "artifact"))
    stored = bytearray((copied / "modules.safetensors").read_bytes())
    stored[-1] ^= 1
    (copied / "modules.safetensors").write_bytes(stored)
    with pytest.raises(ArtifactError, match="modules"):
        router_of(read_model(made.open_base().path), read_artifact(copied))


def test_a_runtime_with_one_number_of_visual_tokens_is_refused(made: Artifact, tmp_path: Path) -> None:
    place = Path(shutil.copytree(made.directory, tmp_path / "artifact", ignore=shutil.ignore_patterns("export")))
    with pytest.raises(ExportError, match="face genai: .* several; use ort"):
        export_artifact(place, Request(faces=("genai",), max_text=MAX_TEXT, max_new=MAX_NEW))
    assert not (place / EXPORT).exists()
