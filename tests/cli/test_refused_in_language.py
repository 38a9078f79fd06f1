"""What the command line refuses of methods in the language model, in one sentence each, before anything is written."""

from pathlib import Path

import pytest
from models import build, write
from refusals import refused


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose language model has five layers."""
    return write(build("llama", "clip", vision_layers=2, text_layers=5), tmp_path_factory.mktemp("model") / "small")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("fastv", "--tokens", "16", "--param", "layer=9"), "5 layers, so tokens can be dropped behind layers 0..3"),
        (("pyramiddrop", "--tokens", "16", "--param", "layers=[3,1]"), "each must lie behind the one before"),
        (("pyramiddrop", "--tokens", "16", "--param", "layers=[1,2,7]"), "the method drops behind layer 7"),
        (("fastv", "--kv-mib", "0.01"), "text alone needs"),
        (("fastv", "--avg-tokens", "3"), "cannot be reached by FastV on this model, whose schedules come to 26.2..64"),
        (("fastv", "--prefill-flops", "10"), "cannot be reached by FastV"),
        (("fastv", "--tokens", "16", "--kv-mib", "1"), "both tokens=16 and kv_mib=1.0 were given; give one of them"),
        (("fastv", "--tokens", "16", "--max-text", "8"), "max_text=8 says nothing beside tokens"),
        (("fastv", "--kv-mib", "-1"), "kv_mib=-1.0 is nothing; choose more than 0"),
        (("llavolta", "--tokens", "15"), "15"),
        (("dyvte", "--tokens", "16"), "keeps all 64 visual tokens"),
        (("redundancylens", "--tokens", "16"), "keeps all 64 visual tokens and works less on them"),
        (("vla_pruner", "--tokens", "16", "--param", "action_layer=1"), "prunes before layer 3 of 5"),
    ],
)
def test_it_is_refused(checkpoint: Path, arguments: tuple[str, ...], text: str) -> None:
    assert text in refused("compress", checkpoint, "--method", *arguments)
