"""Budget sets that cannot be made: one sentence, exit code 2, nothing written."""

from pathlib import Path

import models
import pytest
from refusals import refused

import tokcarve


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.write(models.build(text_layers=6), tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--tokens", "8,8"), "8 is there twice; give every count once"),
        (("--tokens", "8,x"), "--tokens 8,x is no count of visual tokens; give one such as 64, or several such as"),
        (("--tokens", "8,1.5"), "--tokens 8,1.5 is no count of visual tokens"),
        (("--tokens", "8,"), "--tokens 8, is no count of visual tokens"),
        (("--tokens", "8,0"), "Input should be greater than or equal to 1, got 0"),
        (("--tokens", "8,65"), "65"),
        (("--tokens", "8,16", "--mean-tokens", "17"), "mean_tokens=17 is no mean of 8, 16 tokens; choose 8..16"),
        (("--tokens", "8,16", "--mean-tokens", "7"), "mean_tokens=7 is no mean of 8, 16 tokens; choose 8..16"),
        (("--tokens", "8", "--mean-tokens", "8"), "mean_tokens=8 is about several counts; give two or more in tokens"),
        (("--keep", "0.5", "--mean-tokens", "8"), "mean_tokens=8 is about several counts; give two or more in tokens"),
        (("--tokens", "8,16", "--keep", "0.5"), "both keep=0.5 and tokens=(8, 16) were given; give one of them"),
        (("--tokens", "8,16", "--avg-tokens", "9"), "tokens=(8, 16) and avg_tokens=9 were given; give one of them"),
        (("--tokens", "8,16", "--trials", "5"), "shares the method's parameters; leave --trials and --steps out"),
        (("--tokens", "8,16", "--samples", "nowhere"), "sample set nowhere does not exist"),
        (("--tokens", "8,16", "--limit", "3"), "calibration needs 4 or more"),
    ],
)
def test_what_makes_no_set(checkpoint: Path, words: tuple[str, ...], text: str) -> None:
    assert text in refused("compress", checkpoint, "--method", "vtc_cls", *words)


@pytest.mark.parametrize(
    ("method", "text"),
    [
        ("auto", "8, 16 tokens make a budget set, and method auto is for one count; name a method, or give one count"),
        ("prune_and_merge", "and prune_and_merge learns from samples what holds for one count; give one count"),
        ("visiondrop", "and visiondrop leaves parameters to samples, which settle them for one count; fix them with"),
        ("vla_pruner", "and vla_pruner keeps a state between images, which no router knows; give one count"),
    ],
)
def test_methods_that_make_no_set(checkpoint: Path, method: str, text: str) -> None:
    assert text in refused("compress", checkpoint, "--method", method, "--tokens", "8,16")


def test_an_artifact_of_one_budget_routes_nothing(checkpoint: Path) -> None:
    tokcarve.compress(str(checkpoint), method="vtc_cls", tokens=16, out="one")
    words = ("run", "one", "--image", "none.png", "--prompt", "x")
    assert "tokens=8 is no budget of this artifact; choose one of 16" in refused(*words, "--tokens", "8")
    assert "--mean-tokens 16 is about a budget set" in refused(*words, "--mean-tokens", "16")
