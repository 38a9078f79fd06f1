"""A recipe into an artifact: calibration recorded, runs repeatable, nothing read that is not needed."""

import contextlib
import json
from pathlib import Path

import pytest
from models import TOTAL, build, write
from PIL import Image

import tokcarve
from tokcarve.passes.errors import MethodError, SampleError
from tokcarve.recipes.artifact import last, read_artifact
from tokcarve.recipes.carve import carve as recarve


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    model = build("qwen2", "clip", vision_layers=5, text_layers=2)
    return str(write(model, tmp_path_factory.mktemp("base") / "model"))


def carve(base: str, place: Path, out: str = "artifact", **settings: object) -> Path:
    with contextlib.chdir(place):
        return tokcarve.compress(base, out=out, **settings).directory  # type: ignore[arg-type]


def test_calibrated_counts_are_recorded_and_used(base: str, tmp_path: Path) -> None:
    found = read_artifact(carve(base, tmp_path, method="flowcut", tokens=16, samples="scenes", count=9)).manifest
    record = found.calibration
    assert record is not None and record["count"] == 9 and record["agreement"]["images"] == 2
    assert 0.0 <= record["agreement"]["identical"] <= 1.0
    for site, count in record["counts"].items():
        least, most = record["spread"][site]
        assert least <= count <= most or count == 16
    frozen = {entry.site: entry.keep for entry in found.schedule}
    assert frozen == {site: n for site, n in record["counts"].items() if n < TOTAL} | {"vision.layers.2": 16}
    assert [check.name for check in found.checks if check.passed][-1] == "captured vision graph equals the checkpoint"


@pytest.mark.parametrize("count", [4, 5, 8])
def test_small_sample_sets_leave_images_on_both_sides(base: str, tmp_path: Path, count: int) -> None:
    place = carve(base, tmp_path, method="flowcut", tokens=16, samples="scenes", count=count)
    record = read_artifact(place).manifest.calibration
    assert record is not None and record["agreement"]["images"] == count // 4


def test_too_few_samples_are_refused(base: str, tmp_path: Path) -> None:
    with pytest.raises(SampleError, match="holds 3 images; calibration needs 4 or more"):
        carve(base, tmp_path, method="flowcut", tokens=16, samples="scenes", count=3)
    assert not (tmp_path / "artifact").exists()


def test_samples_for_a_method_without_open_counts_are_refused(base: str, tmp_path: Path) -> None:
    with pytest.raises(MethodError, match="vtc_cls leaves nothing open to calibrate .*; leave --samples out"):
        carve(base, tmp_path, method="vtc_cls", tokens=16, samples="scenes")


def test_running_again_gives_the_same_bytes(base: str, tmp_path: Path) -> None:
    settings = {"method": "flowcut", "tokens": 16, "samples": "scenes", "count": 8}
    first, second = (carve(base, tmp_path, out=out, **settings) for out in ("a", "b"))
    files = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    assert all((first / f).read_bytes() == (second / f).read_bytes() for f in files if f.name != "made.json")
    made = json.loads((first / "made.json").read_text())
    assert made["base"] == base and made["seconds"] > 0


def test_assumed_counts_are_said_to_be_assumed(base: str, tmp_path: Path) -> None:
    found = read_artifact(carve(base, tmp_path, method="flowcut", tokens=16)).manifest
    assert found.calibration is None
    assert any("assumed, not calibrated" in line for line in found.not_checked)


def test_parameters_with_several_values_come_back(base: str, tmp_path: Path) -> None:
    params = {"layers": [0], "ratios": [0.5]}
    found = read_artifact(carve(base, tmp_path, method="vflowopt", tokens=16, params=params))
    assert (found.recipe.method.parameters["layers"], found.manifest.method.params["ratios"]) == ((0,), (0.5,))
    schedule = recarve(build("qwen2", "clip", vision_layers=5, text_layers=2), found).schedule
    assert [(record.site, record.keep) for record in schedule] == [("connector", 32), ("language.layers.0", 16)]


def test_a_mean_over_the_layers_is_the_count_that_enters(base: str, tmp_path: Path) -> None:
    found = read_artifact(carve(base, tmp_path, method="vtc_cls", avg_tokens=16)).manifest
    assert found.budget.asked == {"avg_tokens": 16} and found.budget.tokens == 16
    assert found.numbers.tokens_mean == 16.0 and found.kv_rows == (16, 16)


def test_the_last_artifact_is_remembered(base: str, tmp_path: Path) -> None:
    carve(base, tmp_path, method="uniform", tokens=16)
    with contextlib.chdir(tmp_path):
        assert last() == Path("artifact")


def test_a_manifest_knows_no_path_of_its_samples(base: str, tmp_path: Path) -> None:
    places = []
    for name in ("here", "elsewhere"):
        folder = tmp_path / name / "photos"
        folder.mkdir(parents=True)
        for i in range(12):
            Image.new("RGB", (20, 20), (i * 20, 99, 0)).save(folder / f"{i}.png")
        (folder / "broken.png").write_bytes(b"x")
        places.append(carve(base, tmp_path, name + "-k16", method="flowcut", tokens=16, samples=str(folder)))
    first, second = ((place / "tokcarve.json").read_bytes() for place in places)
    assert first == second and str(tmp_path).encode() not in first
    record = read_artifact(places[0]).manifest.calibration
    assert record is not None and record["samples"] == "photos" and record["skipped"][0].startswith("broken.png is not")
