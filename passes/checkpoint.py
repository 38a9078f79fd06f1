"""From what a user calls a model to a checked directory: config, weight files, and an identity to know it by later.

Only JSON, safetensors and tokenizer files are ever read. Pickles are refused and code in a repository is never run.
"""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokcarve.passes.errors import ModelError
from tokcarve.passes.shards import FileIdentity, file_identity, read_header

__all__ = [
    "ALIASES",
    "SUPPORTED",
    "Checkpoint",
    "WeightsIdentity",
    "changed_files",
    "config_directory",
    "open_directory",
    "resolve",
    "same_weights",
    "weights_identity",
]

SUPPORTED = ("LlavaForConditionalGeneration",)
"""Architectures with an adapter, as `architectures` in config.json names them."""

ALIASES = {
    "tiny": "tiny",
    "llava-1.5-7b": "llava-hf/llava-1.5-7b-hf",
    "llava-1.5-13b": "llava-hf/llava-1.5-13b-hf",
    "bakllava": "llava-hf/bakLlava-v1-hf",
    "llava-interleave-qwen-0.5b": "llava-hf/llava-interleave-qwen-0.5b-hf",
    "llava-interleave-qwen-7b": "llava-hf/llava-interleave-qwen-7b-hf",
}
"""Short names and what they stand for: a hub id, or "tiny", the checkpoint that is part of this package."""

_WANTED = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model"]
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_CONVERT = "AutoModelForImageTextToText.from_pretrained(...).save_pretrained(...) of transformers writes them"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint directory that was found whole; `shards` are its safetensors files in order, by absolute path."""

    name: str
    path: Path
    revision: str | None
    config: Mapping[str, Any]
    shards: tuple[Path, ...]

    @property
    def architecture(self) -> str:
        """The supported architecture that its config names."""
        return next(name for name in SUPPORTED if name in self.config["architectures"])


@dataclass(frozen=True, kw_only=True)
class WeightsIdentity:
    """One sha256 over everything that is remembered of the config and the weight files, and those records."""

    identity: str
    files: tuple[FileIdentity, ...]


def resolve(name: str) -> Checkpoint:
    """The checkpoint that a local directory, an alias or a hub id (owner/name) stands for.

    A directory wins over a hub id of the same spelling, and over an alias if it has a config.json. Raises ModelError,
    with what to do next, for a name that is none of these, a hub that cannot be reached, and everything that
    `open_directory` refuses.
    """
    path, revision = _locate(name, _WANTED)
    return open_directory(path, name=name, revision=revision)


def config_directory(name: str) -> Path:
    """A directory with the config.json of what `name` stands for, as in `resolve`, whose weights are not looked for.

    Raises ModelError as `resolve` does for names, and for a missing or broken config or an architecture without an
    adapter.
    """
    path, _ = _locate(name, ["config.json"])
    _read_config(path)
    return path


def _locate(name: str, wanted: list[str]) -> tuple[Path, str | None]:
    """The directory that a name stands for, with the `wanted` files where a hub has it, and its revision there."""
    local = os.path.expanduser(name)
    if os.path.isdir(local) and (name not in ALIASES or os.path.isfile(os.path.join(local, "config.json"))):
        return Path(local), None
    if os.path.isfile(local) and name not in ALIASES:
        raise ModelError(f"model {name!r} is a file; give the directory that holds its config.json")
    target = ALIASES.get(name, name)
    if target == "tiny":
        from tokcarve.tiny import checkpoint_dir

        return checkpoint_dir(), None
    if _HUB_ID.fullmatch(target):
        return _fetch(target, wanted)
    if "/" in name or "\\" in name:
        raise ModelError(f"model {name!r}: there is no such directory; give a directory with a config.json")
    raise ModelError(
        f"unknown model {name!r}{_nearest(name)}; "
        f"give a directory, a hub id (owner/name) or one of {', '.join(ALIASES)}"
    )


def open_directory(path: Path, *, name: str | None = None, revision: str | None = None) -> Checkpoint:
    """The checkpoint in a directory.

    Raises ModelError for a missing or broken config, an architecture without an adapter, weights in pickles, and a
    weight file that is missing, cut short or inconsistent with its index.
    """
    path = path.resolve()
    config = _read_config(path)
    shards = _shards(path)
    return Checkpoint(name=name or str(path), path=path, revision=revision, config=config, shards=shards)


def weights_identity(checkpoint: Checkpoint) -> WeightsIdentity:
    """Records of config.json and every shard, and one hash over them; large shards are sampled, not read."""
    files = tuple(file_identity(path) for path in (checkpoint.path / "config.json", *checkpoint.shards))
    text = json.dumps([asdict(file) for file in files], sort_keys=True)
    return WeightsIdentity(identity=hashlib.sha256(text.encode()).hexdigest(), files=files)


def changed_files(checkpoint: Checkpoint, identity: WeightsIdentity) -> tuple[str, ...]:
    """Names of the files that differ from `identity`, are missing in it or are only in it; empty when none."""
    now = {file.name: file for file in weights_identity(checkpoint).files}
    then = {file.name: file for file in identity.files}
    return tuple(name for name in sorted({*now, *then}) if now.get(name) != then.get(name))


def same_weights(checkpoint: Checkpoint, identity: WeightsIdentity) -> bool:
    """Whether config and weights are still those of `identity`."""
    return not changed_files(checkpoint, identity)


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, ALIASES, n=1, cutoff=0.4)
    return f", did you mean {near[0]!r}" if near else ""


def _fetch(hub_id: str, wanted: list[str]) -> tuple[Path, str]:
    """The local snapshot of a hub repository and its commit; from the cache when the hub cannot be reached."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
    except ImportError:
        raise ModelError(
            f"model {hub_id!r} would come from a hub, which needs `pip install tokcarve[compress]`; or pass a directory"
        ) from None
    try:
        path = Path(snapshot_download(hub_id, allow_patterns=wanted))
    except GatedRepoError:
        raise ModelError(f"model {hub_id!r} is gated: accept its licence on the hub and log in") from None
    except RepositoryNotFoundError:
        raise ModelError(f"model {hub_id!r} is neither a directory here nor on the hub; check its spelling") from None
    except Exception as error:  # the hub client's network layers raise errors of many libraries
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
        raise ModelError(
            f"model {hub_id!r} is no directory here, not in the local cache, and no hub could be reached ({reason}); "
            "download it elsewhere and pass its directory: tokcarve compress /path/to/checkpoint"
        ) from None
    return path, path.name


def _read_config(path: Path) -> dict[str, Any]:
    config = _read_json(path / "config.json", f"{path} has no config.json; give the directory of a checkpoint")
    _check_architecture(path, config)
    return config


def _read_json(path: Path, missing: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(missing) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not readable JSON ({error}); fetch the file again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object; fetch the file again")
    return content


def _check_architecture(path: Path, config: Mapping[str, Any]) -> None:
    named = config.get("architectures")
    names = [name for name in named if isinstance(name, str)] if isinstance(named, list) else []
    if any(name in SUPPORTED for name in names):
        return
    supported = f"supported: {', '.join(SUPPORTED)}"
    found = ", ".join(names) or f"none (model_type {config.get('model_type')!r})"
    if "auto_map" in config:
        raise ModelError(
            f"{path / 'config.json'} names the architecture {found} and asks to run code of its own (auto_map), "
            f"which is never done; {supported}"
        )
    raise ModelError(f"{path / 'config.json'} names the architecture {found}, which has no adapter; {supported}")


def _shards(path: Path) -> tuple[Path, ...]:
    index, single = path / "model.safetensors.index.json", path / "model.safetensors"
    if single.is_file():
        read_header(single)
        return (single,)
    if index.is_file():
        return _indexed_shards(index)
    pickles = sorted(file.name for pattern in _PICKLES for file in path.glob(pattern))
    if pickles:
        raise ModelError(
            f"{path} has its weights only as a pickle ({pickles[0]}), which could run code and is never read; "
            f"convert them to safetensors: {_CONVERT}"
        )
    raise ModelError(f"{path} has no weights; it needs model.safetensors, or its index and every shard")


def _indexed_shards(index: Path) -> tuple[Path, ...]:
    weight_map = _read_json(index, f"{index} is missing; fetch the file again").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{index} has no weight_map; fetch the file again")
    names = sorted({str(file) for file in weight_map.values()})
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(f"{index} names the shard {name!r}, which is no safetensors file beside it")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ModelError(
            f"{index.parent} lacks {len(missing)} of {len(names)} weight files ({', '.join(missing)}); fetch them again"
        )
    headers = {name: read_header(index.parent / name) for name in names}
    for tensor, name in weight_map.items():
        if tensor not in headers[str(name)]:
            raise ModelError(f"{index.parent / str(name)} lacks the tensor {tensor!r} of the index; fetch it again")
    return tuple(index.parent / name for name in names)
