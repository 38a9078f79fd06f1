"""Every input that cannot be served: one sentence on stderr, exit code 2, nothing written."""

import json
import shutil
from pathlib import Path

import models
import pytest
from PIL import Image
from refusals import refused
from transformers.utils.logging import disable_progress_bar
from typer.testing import CliRunner

from tokcarve.cli.main import app

TINY_BUDGET = ["--method", "vtc_cls", "--tokens", "16"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    disable_progress_bar()
    return models.write(models.build(), tmp_path_factory.mktemp("model") / "small")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


@pytest.fixture
def artifact(copy: Path, here: Path) -> Path:
    result = CliRunner().invoke(app, ["compress", str(copy), *TINY_BUDGET, "-o", "art"])
    assert result.exit_code == 0, result.stderr
    return here / "art"


def test_an_unknown_model() -> None:
    text = refused("compress", "lava-1.5-7b", *TINY_BUDGET)
    assert text.startswith("unknown model 'lava-1.5-7b', did you mean 'llava-1.5-7b'; give a directory")
    assert "no model was named" in refused("compress", *TINY_BUDGET)


def test_an_unknown_method(checkpoint: Path) -> None:
    text = refused("compress", checkpoint, "--method", "flowcat", "--tokens", "16")
    assert text.startswith("unknown method 'flowcat', did you mean 'flowcut'; choose one of none, random")
    assert refused("compress", checkpoint, "--tokens", "16").startswith(
        "no method was named; give --method with one of"
    )


def test_an_unknown_parameter(checkpoint: Path) -> None:
    text = refused("compress", checkpoint, *TINY_BUDGET, "--param", "layer=3")
    assert text == "unknown parameter 'layer' of vtc_cls, did you mean 'layers'; it has layers"


@pytest.mark.parametrize(
    ("param", "text"),
    [
        ("layers", "--param 'layers' is not name=value; write it as --param form=exact"),
        ("layers=x", "command line: method.layers: Input should be a valid integer, got 'x'"),
        ("layers=0", "command line: method.layers: Input should be greater than or equal to 1, got 0"),
        ("layers=99", "layers=99 of vtc_cls does not fit the 5 vision layers in use; choose 1..5"),
    ],
)
def test_a_parameter_that_does_not_fit(checkpoint: Path, param: str, text: str) -> None:
    assert refused("compress", checkpoint, *TINY_BUDGET, "--param", param) == text


@pytest.mark.parametrize("keep", ["0", "-0.5", "1.5", "nan", "inf"])
def test_keep_outside_its_range(checkpoint: Path, keep: str) -> None:
    text = refused("compress", checkpoint, "--method", "vtc_cls", "--keep", keep)
    assert text.endswith("is not a share of the visual tokens; choose above 0 and at most 1")


@pytest.mark.parametrize("tokens", [65, 1000])
def test_tokens_above_the_total(checkpoint: Path, tokens: int) -> None:
    text = refused("compress", checkpoint, "--method", "vtc_cls", "--tokens", tokens)
    assert text == f"tokens={tokens} does not fit the 64 visual tokens of this model; choose 1..64"


@pytest.mark.parametrize("tokens", [0, -1])
def test_tokens_below_one(checkpoint: Path, tokens: int) -> None:
    text = refused("compress", checkpoint, "--method", "vtc_cls", "--tokens", tokens)
    assert text.startswith(f"tokens={tokens} is not a count of visual tokens; choose 1 or more")


def test_both_budgets_or_none(checkpoint: Path) -> None:
    text = refused("compress", checkpoint, *TINY_BUDGET, "--keep", "0.5")
    assert text == "both keep=0.5 and tokens=16 were given; give one of them"
    assert refused("compress", checkpoint, "--method", "vtc_cls").startswith("no budget was given; give one of")


def test_flags_that_contradict_each_other(checkpoint: Path) -> None:
    text = refused("compress", checkpoint, "--recipe", "tiny-flowcut-64", "--tokens", "32")
    assert text.startswith("--tokens was given together with --recipe tiny-flowcut-64, which already says it")
    assert refused("compress", checkpoint, *TINY_BUDGET, "--count", "5").startswith("--limit 5 is about samples, and")
    text = refused("compress", checkpoint, *TINY_BUDGET, "--samples", "scenes")
    assert text.startswith("method vtc_cls leaves nothing open to calibrate")


def test_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    text = refused("compress", "llava-1.5-7b", *TINY_BUDGET)
    assert "no hub could be reached" in text
    assert text.endswith("download it elsewhere and pass its directory: tokcarve compress /path/to/checkpoint")


def test_a_directory_without_config(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "has no config.json; give the directory" in refused("compress", tmp_path / "empty", *TINY_BUDGET)


def test_a_truncated_shard(copy: Path) -> None:
    shard = copy / "model.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    text = refused("compress", copy, *TINY_BUDGET)
    assert "model.safetensors is not a whole safetensors file: it was cut short" in text


def test_a_missing_shard(copy: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (copy / "model.safetensors").rename(copy / "model-00001-of-00002.safetensors")
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    text = refused("compress", copy, *TINY_BUDGET)
    assert "lacks 1 of 2 weight files (model-00002-of-00002.safetensors); fetch them again" in text


def test_weights_in_a_pickle(copy: Path) -> None:
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    text = refused("compress", copy, *TINY_BUDGET)
    assert "only as a pickle (pytorch_model.bin), which could run code and is never read; convert them to saf" in text


def test_an_architecture_without_adapter(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "architectures": ["BertModel"]}))
    text = refused("compress", copy, *TINY_BUDGET)
    assert "names the architecture BertModel, which has no adapter; supported: LlavaForConditionalGeneration" in text


@pytest.mark.parametrize("kind", ["missing", "text", "truncated", "empty", "zero", "enormous"])
def test_an_image_that_is_none(artifact: Path, here: Path, kind: str) -> None:
    path = here / "image.png"
    picture = Image.effect_noise((64, 64), 50)
    if kind == "text":
        path.write_text("hello")
    elif kind == "truncated":
        picture.save(path)
        path.write_bytes(path.read_bytes()[:1000])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "zero":
        path.write_bytes(b"P6\n0 0\n255\n")
    elif kind == "enormous":
        path.write_bytes(b"P6\n9000 9000\n255\n" + bytes(10))
    expected = {
        "missing": "does not exist",
        "text": "is not an image that can be read",
        "truncated": "is cut short or damaged",
        "empty": "is empty (0 bytes)",
        "zero": "image.png",
        "enormous": "is enormous (9000 x 9000 pixels); the limit is 64,000,000 pixels",
    }
    assert expected[kind] in refused("run", artifact, "--image", path, "--prompt", "what is it?")


def test_an_empty_sample_set(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    words = ("compress", checkpoint, "--method", "flowcut", "--tokens", "16", "--samples")
    assert "is empty: it holds no images" in refused(*words, tmp_path / "none")
    assert "does not exist; give `scenes`, a folder of images" in refused(*words, tmp_path / "nowhere")


def test_an_existing_output(artifact: Path, copy: Path) -> None:
    assert refused("compress", copy, *TINY_BUDGET, "-o", "art") == (
        "art exists; pass --force to replace it, or choose another -o"
    )


def test_an_output_that_is_something_else(checkpoint: Path, here: Path) -> None:
    (here / "thesis").mkdir()
    (here / "thesis" / "main.tex").write_text("mine")
    text = refused("compress", checkpoint, *TINY_BUDGET, "-o", "thesis", "--force")
    assert text == "thesis exists and is no artifact, so it is left alone; choose another -o"


def test_an_unwritable_place(checkpoint: Path, here: Path) -> None:
    (here / "file").write_text("")
    text = refused("compress", checkpoint, *TINY_BUDGET, "-o", "file/out")
    assert text.endswith("file is a file, so nothing can be written under it; choose another -o")


def test_a_full_disk(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tokcarve.recipes.artifact.write_file", full)
    text = refused("compress", checkpoint, *TINY_BUDGET, "-o", "out")
    assert text.endswith("out cannot be written: the disk is full; free some space or choose another -o")


@pytest.mark.parametrize("verb", ["inspect", "export", "run", "profile"])
def test_no_artifact_yet(verb: str, here: Path) -> None:
    more = ["--image", "x.png", "--prompt", "y"] if verb == "run" else []
    assert refused(verb, *more).startswith(
        "no artifact was named, and none was written in this directory yet; name one"
    )
    assert "does not exist; write an artifact with `tokcarve compress`" in refused(verb, "nowhere", *more)


@pytest.mark.parametrize("verb", ["inspect", "export", "run", "profile"])
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format": 9, "tokcarve": "8.0"}, "has format 9, written by tokcarve 8.0; this is tokcarve"),
        ({"seed": 4}, "does not match its digest, so it was changed by hand"),
    ],
)
def test_a_manifest_of_another_version_or_changed(
    artifact: Path, verb: str, changes: dict[str, object], text: str
) -> None:
    path = artifact / "tokcarve.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    more = ["--image", "x.png", "--prompt", "y"] if verb == "run" else []
    assert text in refused(verb, artifact, *more)


@pytest.mark.parametrize("verb", ["inspect", "export"])
def test_base_weights_that_changed(artifact: Path, copy: Path, verb: str) -> None:
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    text = refused(verb, artifact)
    assert "have changed since it was written (model.safetensors in" in text
    assert text.endswith("put the old files back, or run `tokcarve compress` again")


def test_a_usage_error_is_the_users(checkpoint: Path) -> None:
    for words in (["compress", str(checkpoint), "--tokens", "many"], ["compres"], ["compress", "--nope"]):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 2 and result.stdout == ""


def test_a_fault_of_ours_is_not_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("tokcarve.recipes.make.make_recipe", broken)
    result = CliRunner().invoke(app, ["compress", "tiny", *TINY_BUDGET])
    assert result.exit_code == 1
    assert result.stderr.startswith("internal error: ZeroDivisionError: division by zero (a fault of tokcarve, not of")
    monkeypatch.setenv("TOKCARVE_DEBUG", "1")
    assert "Traceback" in CliRunner().invoke(app, ["compress", "tiny", *TINY_BUDGET]).stderr
