"""The shapes that aliases carry are those of the configs that their repositories publish."""

import json
from pathlib import Path

import pytest
from published import PUBLISHED
from transformers import LlavaConfig

from tokcarve.passes import families
from tokcarve.passes.checkpoint import ALIASES
from tokcarve.passes.errors import ModelError
from tokcarve.passes.families.load import read_config
from tokcarve.passes.known import KNOWN, known
from tokcarve.recipes.shapes import shapes_of
from tokcarve.tiny import checkpoint_dir


def test_every_alias_is_known_and_has_a_published_config() -> None:
    assert set(KNOWN) == set(ALIASES) == {*PUBLISHED, "tiny"}


@pytest.mark.parametrize("alias", PUBLISHED)
def test_shapes_are_those_of_the_published_config(alias: str) -> None:
    assert families.geometry(LlavaConfig(**PUBLISHED[alias])) == KNOWN[alias]


def test_tiny_is_as_it_is_shipped() -> None:
    assert families.geometry(read_config(checkpoint_dir())) == KNOWN["tiny"]


def test_an_alias_and_its_hub_id_are_one_model() -> None:
    assert known("llava-1.5-7b") == known("llava-hf/llava-1.5-7b-hf") == KNOWN["llava-1.5-7b"]
    assert known("llava-hf/llava-1.5-70b-hf") is None


def test_a_config_of_that_name_here_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llava-1.5-7b").mkdir()
    assert known("llava-1.5-7b") is not None, "a directory without a config is no model"
    text = json.dumps(PUBLISHED["llava-1.5-13b"])
    (tmp_path / "llava-1.5-7b" / "config.json").write_text(text)
    assert known("llava-1.5-7b") is None
    assert shapes_of("llava-1.5-7b") == KNOWN["llava-1.5-13b"], "from the config alone, without weights"


def test_of_a_hub_model_only_the_config_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["bakllava"]))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    assert shapes_of("someone/fine-tuned") == KNOWN["bakllava"]
    assert asked == [("someone/fine-tuned", ["config.json"])]


def test_what_has_no_shapes(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="unknown model 'lava-1.5-7b', did you mean 'llava-1.5-7b'"):
        shapes_of("lava-1.5-7b")
    with pytest.raises(ModelError, match="has no config.json"):
        shapes_of(str(tmp_path))
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}')
    with pytest.raises(ModelError, match="BertModel, which has no adapter"):
        shapes_of(str(tmp_path))
