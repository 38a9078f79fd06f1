"""What a method cannot do with a model or a count: one sentence that says what would work, nothing written."""

import json
import shutil
from pathlib import Path

import models
import pytest
from refusals import refused
from transformers.utils.logging import disable_progress_bar
from typer.testing import CliRunner

from tokcarve.cli.main import app


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    disable_progress_bar()
    place = tmp_path_factory.mktemp("models")
    kinds: list[models.Tower] = ["clip", "siglip"]
    return {kind: models.write(models.build("llama", kind), place / kind) for kind in kinds}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("method", ["vtc_cls", "visionzip", "turbo", "todre", "recoverable"])
def test_a_tower_without_cls_says_which_methods_work_there(towers: dict[str, Path], method: str) -> None:
    text = refused("compress", towers["siglip"], "--method", method, "--tokens", "16")
    assert "reads the [CLS] row, and this siglip tower has no [CLS] token; methods that work here are none" in text
    named = text.rpartition("are ")[2].split(", ")
    assert {"hiprune", "divprune", "cdpruner", "tome", "vflowopt", "prune_and_merge"} <= set(named)
    assert not {"flowcut", "vtc_cls", "visionzip", "visiondrop", "holov", "turbo", "todre", "recoverable"} & set(named)


REFUSED = {
    "merging below half per layer": (
        ["--method", "tome", "--tokens", "1"],
        "ToMe merges at most half of the tokens in each of the 5 vision layers in use, which leaves 2 of 64; 1 were "
        "asked for: keep 2 or more",
    ),
    "a count that is no grid": (
        ["--method", "downsample", "--tokens", "11"],
        "downsample needs a grid of at most 8 x 8 patches, and 11 is none; 10 and 12 are",
    ),
    "anchors that do not fit": (
        ["--method", "hiprune", "--tokens", "13", "--param", "alpha=1.0"],
        "alpha=1.0 of hiprune asks for 3 anchors with four neighbours each among 13 tokens; choose alpha in 0..0.76",
    ),
    "a layer that is not there": (
        ["--method", "hiprune", "--tokens", "16", "--param", "object_layer=9"],
        "object_layer=9 of hiprune does not fit the 5 vision layers in use; choose 1..5",
    ),
    "more cells than tokens": (
        ["--method", "vflowopt", "--tokens", "7", "--param", "cell=2"],
        "vflowopt with cell=2.0 recycles into 16 tokens, and 7 were asked for; keep 14 or more, or choose a larger "
        "cell",
    ),
    "a ratio without a layer": (
        ["--method", "vflowopt", "--tokens", "16", "--param", "ratios=[0.5]"],
        "ratios of vflowopt are 1, one for every layer behind which it drops, and it drops behind 2; give as many of "
        "both",
    ),
    "fewer than all before the exit": (
        ["--method", "dyvte", "--keep", "0.5"],
        "dyvte keeps all 64 visual tokens until they leave together, and 32 were asked for; ask for 64 and set the "
        "layer with --param, or choose a method that keeps some",
    ),
    "runs of several lengths": (
        ["--method", "llavolta", "--tokens", "24"],
        "llavolta averages runs of one length, and 64 visual tokens have no 24 of them; choose one of 1, 2, 4, 8, 16, "
        "32",
    ),
    "layers that a small model lacks": (
        ["--method", "visiondrop", "--tokens", "16"],
        "this language model has 3 layers, so tokens can be dropped behind layers 0..1, and the method drops behind "
        "layer 2; choose other layers with --param",
    ),
    "no room for [CLS]": (
        ["--method", "visionzip", "--tokens", "16", "--param", "contextual=1.0"],
        "contextual=1.0 of visionzip folds 16 of 16 tokens and leaves none for [CLS]; choose 0..0.93",
    ),
    "more bands than tokens": (
        ["--method", "holov", "--tokens", "16", "--param", "crops=65"],
        "crops=65 of holov does not fit 64 tokens; choose 1..64",
    ),
    "a place for [CLS]": (
        ["--method", "visionzip", "--tokens", "16", "--positions", "original"],
        "VisionZip also sends the [CLS] row, which has no place in the image, so its tokens cannot keep "
        "original positions; choose positions renumbered",
    ),
    "nothing to learn from": (
        ["--method", "prune_and_merge", "--tokens", "16"],
        "method prune_and_merge learns its merge from samples; pass --samples (the bundled scenes, a folder of images, "
        "or a JSONL file)",
    ),
    "nothing to learn": (
        ["--method", "tome", "--tokens", "16", "--samples", "scenes"],
        "method tome leaves nothing open to calibrate with these parameters; leave --samples out",
    ),
}


def test_pixels_that_were_normalised_otherwise(towers: dict[str, Path], tmp_path: Path) -> None:
    words = ["--method", "vflowopt", "--tokens", "16", "--param", "alpha=0.5", "--dry-run"]
    copy = Path(shutil.copytree(towers["clip"], tmp_path / "copy"))
    assert CliRunner().invoke(app, ["compress", str(copy), *words]).exit_code == 0
    path = copy / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "image_mean": [0.5, 0.5, 0.5]}))
    text = refused("compress", copy, *words)
    assert "image_mean [0.48145466, 0.4578275, 0.40821073], as clip towers are trained" in text
    assert text.endswith("says [0.5, 0.5, 0.5]; choose parameters that read no pixels")
    path.write_text("{")
    assert "preprocessor_config.json is no JSON" in refused("compress", copy, *words)


@pytest.mark.parametrize("case", REFUSED)
def test_what_a_method_cannot_do(towers: dict[str, Path], case: str) -> None:
    words, text = REFUSED[case]
    assert refused("compress", towers["clip"], *words) == text


@pytest.mark.parametrize(
    ("method", "param"),
    [
        ("tome", "proportional=3"),
        ("turbo", "alpha=-1"),
        ("hiprune", "alpha=1.5"),
        ("visionzip", "order=sorted"),
        ("holov", "rank_by=text"),
        ("cdpruner", "theta=1.0"),
        ("vflowopt", "cell=0.5"),
        ("vflowopt", "ratios=0.5"),
        ("visiondrop", "scope=tower"),
        ("dyvte", "layer=-1"),
        ("llavolta", "layer=0"),
        ("todre", "exit=3"),
        ("recoverable", "neighbours=0"),
        ("prune_and_merge", "ridge=0.0"),
    ],
)
def test_a_parameter_out_of_range_is_named(towers: dict[str, Path], method: str, param: str) -> None:
    name, _, value = param.partition("=")
    text = refused("compress", towers["clip"], "--method", method, "--tokens", "16", "--param", param)
    assert name in text and value in text
