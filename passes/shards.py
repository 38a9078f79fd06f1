"""Safetensors files without torch: is a file whole, what does it hold, and is it still the same file?

A file is 8 bytes of header length (little-endian), a JSON header of tensors with byte ranges, and the data, without
holes or overlaps up to the last byte. All of that is checked here before anything is loaded.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tokcarve.passes.errors import ModelError

__all__ = ["FileIdentity", "TensorEntry", "file_identity", "read_header"]

_MOST_HEADER_BYTES = 100_000_000
_WHOLE_BELOW = 64 * 2**20
_BLOCKS, _BLOCK_BYTES = 256, 4096
_BITS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 64),
    **dict.fromkeys(("F32", "I32", "U32"), 32),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 16),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    "F4": 4,
}


@dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """One tensor of a file: its safetensors dtype name, its shape, and its bytes [start, end) within the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class FileIdentity:
    """What is remembered of a file instead of its content; `size` in bytes, hashes in hexadecimal.

    Up to 64 MiB `sampled_sha256` covers every byte; above, 256 blocks of 4 KiB spread over the file.
    """

    name: str
    size: int
    header_sha256: str
    sampled_sha256: str


def read_header(path: Path) -> Mapping[str, TensorEntry]:
    """The tensors of a safetensors file, by name; raises ModelError naming what is wrong with a damaged one."""
    size, header = _header_bytes(path)
    try:
        fields = json.loads(header, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is not JSON ({error})") from None
    if not isinstance(fields, dict):
        raise _damaged(path, "its header is no JSON object")
    begin = 8 + len(header)
    tensors = {name: _entry(path, name, entry, begin) for name, entry in fields.items() if name != "__metadata__"}
    _check_ranges(path, tensors, begin, size)
    return tensors


def file_identity(path: Path) -> FileIdentity:
    """Size, header hash (of the first 64 KiB where the file is no safetensors) and sampled hash of a file."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        if path.suffix == ".safetensors":
            header = stream.read(min(int.from_bytes(stream.read(8), "little"), _MOST_HEADER_BYTES))
        else:
            header = stream.read(2**16)
        sampled = hashlib.sha256()
        for start, length in _samples(size):
            stream.seek(start)
            sampled.update(stream.read(length))
    return FileIdentity(
        name=path.name,
        size=size,
        header_sha256=hashlib.sha256(header).hexdigest(),
        sampled_sha256=sampled.hexdigest(),
    )


def _samples(size: int) -> Iterator[tuple[int, int]]:
    if size < _WHOLE_BELOW:
        yield from ((start, 2**20) for start in range(0, size, 2**20))
        return
    places = random.Random(size)
    stride = size // _BLOCKS
    for block in range(_BLOCKS):
        yield block * stride + places.randrange(stride - _BLOCK_BYTES), _BLOCK_BYTES
    yield size - _BLOCK_BYTES, _BLOCK_BYTES


def _header_bytes(path: Path) -> tuple[int, bytes]:
    try:
        size = path.stat().st_size
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if size < 8 or length > _MOST_HEADER_BYTES:
                raise _damaged(path, f"its first 8 bytes announce a header of {length} bytes in a file of {size}")
            header = stream.read(length)
    except OSError as error:
        raise ModelError(f"{path} cannot be read ({error.strerror}); give a readable checkpoint") from None
    if len(header) < length:
        raise _damaged(path, f"it ends inside its header, after {size} of at least {8 + length} bytes")
    return size, header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a name occurs twice")
    return fields


def _entry(path: Path, name: str, entry: Any, begin: int) -> TensorEntry:
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(end)]} if (
            all(type(extent) is int and extent >= 0 for extent in shape) and 0 <= start <= end
        ):
            if dtype not in _BITS:
                raise _damaged(path, f"tensor {name!r} has the unknown type {dtype!r}")
            if (end - start) * 8 != prod(shape) * _BITS[dtype]:
                raise _damaged(path, f"tensor {name!r} {dtype}{shape} is given {end - start} bytes")
            return TensorEntry(dtype=dtype, shape=tuple(shape), start=begin + start, end=begin + end)
    raise _damaged(path, f"the header entry of tensor {name!r} is malformed")


def _check_ranges(path: Path, tensors: Mapping[str, TensorEntry], begin: int, size: int) -> None:
    place = begin
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != place:
            fault = "overlaps the one before it" if entry.start < place else "leaves a hole before it"
            raise _damaged(path, f"tensor {name!r} {fault}")
        place = entry.end
    if place > size:
        raise _damaged(path, f"it was cut short: its header describes {place} bytes, the file has {size}")
    if place < size:
        raise _damaged(path, f"{size - place} bytes follow its last tensor")


def _damaged(path: Path, fault: str) -> ModelError:
    return ModelError(f"{path} is not a whole safetensors file: {fault}; fetch the file again")
