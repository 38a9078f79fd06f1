"""`tokcarve plan` at the command line: what it prints, what it refuses, and that it reads next to nothing."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from refusals import refused
from spoken import said, told

from tokcarve.passes.methods import METHODS

LLAVA = ("llava-1.5-7b", "--method", "vtc_cls", "--tokens", "64")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # no test may ask a hub
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return tmp_path


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wishes are asked of a few methods."""
    some = {name: METHODS[name] for name in ("vtc_cls", "fastv", "none")}
    monkeypatch.setattr("tokcarve.exporters.wish.METHODS", some)


def planned(*words: object) -> dict[str, Any]:
    found: dict[str, Any] = told("plan", *words)["plan"]
    return found


def test_a_plan_in_json() -> None:
    found = planned(*LLAVA)
    assert found["budget"] == {"asked": {"tokens": 64}, "tokens": 64, "total": 576}
    assert [(stage["site"], stage["keep"]) for stage in found["schedule"]] == [("vision.layers.22", 64)]
    assert found["numbers"]["kv_mib"] == 32.0 and found["numbers"]["kv_mib_unpruned"] == 288.0
    assert found["flops"]["conventions"]["all"]["unpruned"] == found["flops"]["prefill"]["unpruned"]
    assert list(found["weights"]) == ["fp32", "fp16", "int8", "int4"]
    assert found["weights"]["fp16"]["total"] == sum(list(found["weights"]["fp16"].values())[:-1])
    boards = {one["module"]: one for one in found["boards"]}
    assert (boards["orin 64 GiB"]["builds"], boards["orin 32 GiB"]["builds"]) == (True, False)
    least = boards["orin 64 GiB"]["least_ms"]
    assert least["unpruned"]["prefill"] / least["pruned"]["prefill"] == pytest.approx(
        boards["orin 64 GiB"]["possible_speedup"]["prefill"]
    )
    assert any("nothing was measured" in note for note in found["notes"])


def test_nothing_large_is_loaded_and_nothing_is_written(here: Path) -> None:
    script = (
        "import sys\n"
        f"sys.argv = ['tokcarve', 'plan', {', '.join(map(repr, LLAVA))}, '--target', 'orin', '--json']\n"
        "from tokcarve.cli.main import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code\n"
        "large = {'transformers', 'onnx', 'onnxruntime'} & set(sys.modules)\n"
        "assert not large, large\n"
        "from tokcarve.exporters.device.peak import peak_mib\n"
        "print(peak_mib(), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stderr.split()[-1]) < 1024
    assert [one["module"] for one in json.loads(done.stdout)["plan"]["boards"]] == ["orin 64 GiB", "orin 32 GiB"]
    assert list(here.iterdir()) == []


def test_tables_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    text = said("plan", *LLAVA, "--target", "orin-nx@10.16", "--precision", "int4", "--of-peak", "0.5")
    for words in (
        "64 of 576, positions renumbered",
        "32.000 MiB in fp16 (unpruned 288.000 MiB)",
        "prefill, counted as fastv",
        "orin-nx 16 GiB",
        "least milliseconds in int4 (unpruned), at 50% of the peaks",
        "possible gain by stage, and end to end by new tokens",
        "scaling law: the tokens that are left raise the reducible error of visual reasoning by 2.4 %",
        "nothing was measured",
    ):
        assert words in text
    assert "cards differ too much" in said("plan", *LLAVA, "--target", "rtx")


def test_budgets_are_those_of_compress() -> None:
    # 76 visual rows in 32 layers and 128 of text have 0.5 MiB each
    assert planned("llava-1.5-7b", "--method", "vtc_cls", "--kv-mib", "102")["budget"]["tokens"] == 76
    assert planned("llava-1.5-7b", "--method", "fastv", "--avg-tokens", "96")["budget"]["tokens"] == 64
    found = planned("tiny", "--method", "todre", "--keep", "0.11", "--max-text", "32", "--max-new", "8")
    assert (found["budget"]["tokens"], found["max_text"], found["max_new"]) == (64, 32, 8)
    recipe = planned("--recipe", "thor-13b-visionzip-64", "--target", "thor")
    assert (recipe["method"]["name"], recipe["budget"]["tokens"]) == ("visionzip", 64)


@pytest.mark.usefixtures("few")
def test_a_wish_for_latency() -> None:
    wish = ("--latency", "120", "--target", "orin")
    made = told("plan", "llava-1.5-7b", "--method", "vtc_cls", *wish)
    tokens = made["plan"]["budget"]["tokens"]
    rows = {one["method"]: one for one in made["wish"]["methods"]}
    assert rows["vtc_cls"]["counts"]["orin 64 GiB"]["tokens"] == tokens
    assert made["plan"]["boards"][0]["least_ms"]["pruned"]["first_token"] <= 120
    assert rows["fastv"]["where"] == "in the language model"


@pytest.mark.usefixtures("few")
def test_only_a_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    found = told("plan", "tiny", "--latency", "1000", "--target", "orin-nano")
    assert found["plan"] is None and found["wish"]["latency_ms"] == 1000
    text = said("plan", "tiny", "--latency", "0.000001", "--target", "orin-nano")
    assert "no method can give tiny a first token in 1e-06 ms" in text


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "no model was named"),
        (("--latency", "9", "--target", "orin"), "no model was named"),
        (("tiny",), "no method was named"),
        (("tiny", "--tokens", "64"), "no method was named"),
        (("tiny", "--method", "fastv"), "no budget was given"),
        (("lava-1.5-7b", "--method", "fastv", "--tokens", "64"), "unknown model 'lava-1.5-7b', did you mean"),
        (("tiny", "--method", "fastw", "--tokens", "64"), "unknown method 'fastw', did you mean 'fastv'"),
        (("tiny", "--method", "fastv", "--tokens", "64", "--target", "orion"), "no board 'orion' is known"),
        (("tiny", "--method", "fastv", "--tokens", "64", "--precision", "fp8"), "--precision fp8 is none"),
        (("tiny", "--method", "fastv", "--tokens", "64,128"), "samples decide what this recipe comes to"),
        (("tiny", "--method", "auto", "--tokens", "64"), "samples decide what this recipe comes to"),
        (("tiny", "--method", "fastv", "--keep", "auto"), "--keep auto is a count that samples decide"),
        (("--recipe", "tiny-fastv-64", "--tokens", "8"), "--tokens was given together with --recipe"),
        (("tiny", "--latency", "9"), "--latency 9 is about a board, and no --target was named"),
        (("tiny", "--latency", "-1", "--target", "orin"), "--latency -1 is no time"),
        (("tiny", "--latency", "inf", "--target", "orin"), "--latency inf is no time"),
        (("tiny", "--latency", "9", "--target", "rtx"), "give --target orin, orin-nx, orin-nano, thor"),
        (("tiny", "--latency", "9", "--target", "orin", "--param", "layer=5"), "--param is about one method"),
        (("tiny", "--latency", "9", "--target", "orin", "--positions", "original"), "--positions is about one method"),
        (("tiny", "--latency", "9", "--target", "orin", "--of-peak", "1e-9"), "--of-peak 1e-09 is no share"),
        (("llava-1.5-7b", "--method", "fastv", "--latency", "1", "--target", "orin"), "cannot be met by fastv"),
    ],
)
@pytest.mark.usefixtures("few")
def test_what_a_plan_refuses(words: tuple[str, ...], text: str) -> None:
    assert text in refused("plan", *words)
