"""Checkpoint directories made from nothing, without torch: enough for everything that only looks at files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {"architectures": ["LlavaForConditionalGeneration"], "model_type": "llava"}
SIZES = {"F32": 4, "F16": 2, "U8": 1}


def header_of(tensors: Mapping[str, tuple[str, list[int]]]) -> dict[str, Any]:
    """A correct safetensors header for tensors {name: (dtype, shape)}, one behind the other."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, (dtype, shape) in tensors.items():
        size = SIZES[dtype]
        for extent in shape:
            size *= extent
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + size]}
        place += size
    return header


def write_safetensors(path: Path, header: object, data: bytes) -> Path:
    """A file with this header, right or wrong, and this data."""
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def write_shard(path: Path, *names: str) -> Path:
    """A whole file with one F32 tensor [2, 3] under every name."""
    data = b"".join(bytes([number + 1]) * 24 for number in range(len(names)))
    return write_safetensors(path, header_of(dict.fromkeys(names, ("F32", [2, 3]))), data)


def write_checkpoint(directory: Path, *, shards: int = 1, config: object = CONFIG) -> Path:
    """A directory that `resolve` accepts, with `shards` weight files and a few processor files."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text('{"version": "1.0"}')
    (directory / "preprocessor_config.json").write_text("{}")
    if shards == 1:
        write_shard(directory / "model.safetensors", "a", "b")
        return directory
    weight_map = {}
    for number in range(1, shards + 1):
        name = f"model-{number:05}-of-{shards:05}.safetensors"
        write_shard(directory / name, f"layer.{number}")
        weight_map[f"layer.{number}"] = name
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory
