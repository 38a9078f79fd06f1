"""`compress` of a 7B-shaped checkpoint directory: seconds and peak resident memory.

The directory has the config and the safetensors headers of LLaVA-1.5-7B in fp16; the 14 GB of weights are a hole in
the file system, because carving on the meta device must not read them.

    python benchmarks/sparse_7b.py
"""

import json
import resource
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from shapes import llama_7b, llava

import tokcarve
from tokcarve.passes import families

SHARD_BYTES = 5 * 10**9
Fill = Callable[[int], bytes]


def write_checkpoint(directory: Path, fill: Fill | None = None) -> int:
    """Headers for every tensor and what `fill` makes of so many bytes, or holes; returns the bytes of all tensors."""
    shape = llava(llama_7b(), 32000)
    shape.save_pretrained(directory)
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    room = SHARD_BYTES
    for name, tensor in families.empty(shape).state_dict().items():
        size = tensor.numel() * 2
        if size > room:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = tuple(tensor.shape)
        room -= size
    weight_map, total = {}, 0
    for i, tensors in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        total += write_shard(directory / file, tensors, fill)
        weight_map |= dict.fromkeys(tensors, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def write_shard(path: Path, tensors: dict[str, tuple[int, ...]], fill: Fill | None) -> int:
    """One fp16 shard, its data a hole or filled tensor by tensor; returns its data bytes."""
    header, offset = {}, 0
    for name, shape in tensors.items():
        size = 2 * int(torch.Size(shape).numel())
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for entry in header.values() if fill is not None else ():
            start, end = entry["data_offsets"]
            file.write(fill(end - start))
        file.truncate(8 + len(text) + offset)
    return offset


def main() -> None:
    """Print one row per method."""
    with tempfile.TemporaryDirectory() as place:
        directory = Path(place) / "llava-7b"
        directory.mkdir()
        total = write_checkpoint(directory)
        print(f"checkpoint of {total / 1e9:.1f} GB in {directory.name}; allowed: 20 s, 2.0 GiB")
        for method in ("flowcut", "vtc_cls"):
            start = time.perf_counter()
            tokcarve.compress(str(directory), method=method, tokens=64, out=Path(place) / method)
            seconds = time.perf_counter() - start
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(f"{method:10s} {seconds:6.1f} s   peak {peak:.2f} GiB")


if __name__ == "__main__":
    main()
