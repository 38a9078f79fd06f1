import json
from pathlib import Path

import pytest
from checkpoints import CONFIG, write_checkpoint, write_shard

from tokcarve.passes.checkpoint import (
    ALIASES,
    SUPPORTED,
    changed_files,
    open_directory,
    resolve,
    same_weights,
    weights_identity,
)
from tokcarve.passes.errors import ModelError
from tokcarve.tiny import checkpoint_dir


def _refusal(name: Path | str) -> str:
    with pytest.raises(ModelError) as refusal:
        resolve(str(name))
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_a_directory_is_opened(tmp_path: Path) -> None:
    found = resolve(str(write_checkpoint(tmp_path / "model")))
    assert found.path == tmp_path / "model"
    assert found.config == CONFIG
    assert found.architecture == "LlavaForConditionalGeneration"
    assert found.revision is None
    assert found.shards == (tmp_path / "model" / "model.safetensors",)


def test_shards_come_in_order(tmp_path: Path) -> None:
    found = open_directory(write_checkpoint(tmp_path / "model", shards=3))
    assert [shard.name for shard in found.shards] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]


def test_an_unknown_name_gets_the_nearest_alias() -> None:
    text = _refusal("lava-1.5-7b")
    assert text.startswith("unknown model 'lava-1.5-7b', did you mean 'llava-1.5-7b'; give a directory, a hub id")
    assert all(alias in text for alias in ALIASES)
    assert _refusal("").startswith("unknown model ''")
    assert _refusal("x" * 5000).startswith("unknown model")


def test_a_path_that_is_not_there(tmp_path: Path) -> None:
    assert _refusal(tmp_path / "nope") == (
        f"model {str(tmp_path / 'nope')!r}: there is no such directory; give a directory with a config.json"
    )


def test_an_alias_is_not_hidden_by_a_folder_without_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert resolve("tiny").path == checkpoint_dir()
    write_checkpoint(tmp_path / "other").rename(tmp_path / "tiny")
    assert resolve("tiny").path == tmp_path / "tiny"


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert _refusal(tmp_path / "config.json").endswith("is a file; give the directory that holds its config.json")


def test_a_directory_without_config(tmp_path: Path) -> None:
    assert _refusal(tmp_path) == f"{tmp_path} has no config.json; give the directory of a checkpoint"


@pytest.mark.parametrize("text", ["{", "", "\xff\xfe", "[" * 50_000])
def test_a_config_that_is_not_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    assert _refusal(tmp_path).startswith(f"{tmp_path / 'config.json'} is not readable JSON")


def test_a_config_that_is_no_object(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[1]")
    assert _refusal(tmp_path) == f"{tmp_path / 'config.json'} holds no JSON object; fetch the file again"


@pytest.mark.parametrize("named", [["BertModel"], [], None, "Bert", [3]])
def test_an_architecture_without_adapter(tmp_path: Path, named: object) -> None:
    path = write_checkpoint(tmp_path / "model", config={"architectures": named, "model_type": "bert"})
    text = _refusal(path)
    assert "which has no adapter; supported: LlavaForConditionalGeneration" in text
    assert ("BertModel" if named == ["BertModel"] else "none (model_type 'bert')") in text


def test_code_of_a_repository_is_never_run(tmp_path: Path) -> None:
    config = {"architectures": ["Magic"], "auto_map": {"AutoModel": "magic.Magic"}}
    assert "asks to run code of its own (auto_map), which is never done; supported: Llava" in _refusal(
        write_checkpoint(tmp_path / "strange", config=config)
    )
    open_directory(write_checkpoint(tmp_path / "known", config={**CONFIG, "auto_map": {"AutoModel": "magic.Magic"}}))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "weights.pt", "m.pth"])
def test_a_pickle_is_refused(tmp_path: Path, name: str) -> None:
    path = write_checkpoint(tmp_path / "model")
    (path / "model.safetensors").rename(path / name)
    assert f"only as a pickle ({name}), which could run code and is never read; convert them" in _refusal(path)


def test_no_weights_at_all(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "model")
    (path / "model.safetensors").unlink()
    assert _refusal(path) == f"{path} has no weights; it needs model.safetensors, or its index and every shard"


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "model", shards=3)
    (path / "model-00002-of-00003.safetensors").unlink()
    assert _refusal(path) == (f"{path} lacks 1 of 3 weight files (model-00002-of-00003.safetensors); fetch them again")


def test_a_shard_without_a_tensor_of_the_index(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "model", shards=2)
    write_shard(path / "model-00002-of-00002.safetensors", "other")
    assert _refusal(path).endswith("lacks the tensor 'layer.2' of the index; fetch it again")


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "model.bin", "sub/model.safetensors"])
def test_an_index_points_at_files_beside_it_only(tmp_path: Path, name: str) -> None:
    path = write_checkpoint(tmp_path / "model", shards=2)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    assert f"names the shard {name!r}, which is no safetensors file beside it" in _refusal(path)


@pytest.mark.parametrize("index", [{}, {"weight_map": {}}, {"weight_map": ["a"]}])
def test_an_index_without_a_map(tmp_path: Path, index: object) -> None:
    path = write_checkpoint(tmp_path / "model", shards=2)
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert _refusal(path).endswith("has no weight_map; fetch the file again")


def test_no_hub_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    text = _refusal("nobody/nothing-of-the-kind")
    assert text.startswith(
        "model 'nobody/nothing-of-the-kind' is no directory here, not in the local cache, and no hub"
    )
    assert text.endswith("pass its directory: tokcarve compress /path/to/checkpoint")


def test_a_hub_id_comes_from_the_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = write_checkpoint(tmp_path / "snapshots" / "0123abc")
    asked: list[tuple[str, list[str]]] = []

    def download(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(snapshot)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    found = resolve("llava-1.5-7b")
    assert (found.name, found.path, found.revision) == ("llava-1.5-7b", snapshot, "0123abc")
    assert asked[0][0] == "llava-hf/llava-1.5-7b-hf"
    assert not any(pattern.endswith((".bin", ".py", "*")) for pattern in asked[0][1])


def test_identity_covers_config_and_every_shard(tmp_path: Path) -> None:
    found = open_directory(write_checkpoint(tmp_path / "model", shards=2))
    identity = weights_identity(found)
    assert [file.name for file in identity.files] == ["config.json", *(shard.name for shard in found.shards)]
    assert same_weights(found, identity)
    write_shard(found.shards[1], "layer.2", "more")
    assert changed_files(found, identity) == (found.shards[1].name,)
    assert not same_weights(found, identity)
    assert weights_identity(found).identity != identity.identity
    (found.path / "config.json").write_text(json.dumps({**CONFIG, "more": 1}))
    assert changed_files(found, identity) == ("config.json", found.shards[1].name)


def test_a_copy_elsewhere_is_the_same(tmp_path: Path) -> None:
    first = open_directory(write_checkpoint(tmp_path / "one"))
    second = open_directory(write_checkpoint(tmp_path / "two"))
    assert same_weights(second, weights_identity(first))


def test_supported_architectures_are_those_with_a_family() -> None:
    from tokcarve.passes.families import FAMILIES

    assert set(SUPPORTED) == set(FAMILIES)
