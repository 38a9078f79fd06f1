from pathlib import Path
from typing import Any

import pytest
from checkpoints import header_of, write_safetensors, write_shard

from tokcarve.passes.errors import ModelError
from tokcarve.passes.shards import TensorEntry, file_identity, read_header

GOOD = header_of({"a": ("F32", [2, 3]), "b": ("F16", [5]), "empty": ("F32", [0, 4])})
DATA = bytes(34)


def _with(name: str, **changes: Any) -> dict[str, Any]:
    return {**GOOD, name: {**GOOD[name], **changes}}


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    tensors = read_header(write_safetensors(tmp_path / "w.safetensors", GOOD, DATA))
    begin = (tmp_path / "w.safetensors").stat().st_size - 34
    assert tensors["a"] == TensorEntry(dtype="F32", shape=(2, 3), start=begin, end=begin + 24)
    assert tensors["b"] == TensorEntry(dtype="F16", shape=(5,), start=begin + 24, end=begin + 34)
    assert list(tensors) == ["a", "b", "empty"]


@pytest.mark.parametrize(
    ("header", "data", "fault"),
    [
        (GOOD, DATA[:-1], "it was cut short: its header describes"),
        (GOOD, DATA + b"x", "1 bytes follow its last tensor"),
        (_with("b", data_offsets=[20, 30]), DATA, "tensor 'b' overlaps the one before it"),
        (_with("b", data_offsets=[26, 36]), DATA, "tensor 'b' leaves a hole before it"),
        (_with("b", data_offsets=[34, 24]), DATA, "the header entry of tensor 'b' is malformed"),
        (_with("b", data_offsets=[-10, 0]), DATA, "the header entry of tensor 'b' is malformed"),
        (_with("b", shape=[-5]), DATA, "the header entry of tensor 'b' is malformed"),
        (_with("b", shape=[5.0]), DATA, "the header entry of tensor 'b' is malformed"),
        (_with("b", shape=[6]), DATA, "tensor 'b' F16[6] is given 10 bytes"),
        (_with("b", dtype="F17"), DATA, "tensor 'b' has the unknown type 'F17'"),
        ({**GOOD, "b": 7}, DATA, "the header entry of tensor 'b' is malformed"),
        ([], b"", "its header is no JSON object"),
        (b"{", b"", "its header is not JSON"),
        (b'{"a": 1, "a": 1}', b"", "its header is not JSON (a name occurs twice)"),
        (b"[" * 100_000, b"", "its header is not JSON"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, header: object, data: bytes, fault: str) -> None:
    path = write_safetensors(tmp_path / "w.safetensors", header, data)
    with pytest.raises(ModelError) as refusal:
        read_header(path)
    assert str(refusal.value).startswith(f"{path} is not a whole safetensors file: {fault}")
    assert str(refusal.value).endswith("; fetch the file again")


def test_a_header_beyond_reason_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes((2**60).to_bytes(8, "little") + b"{}")
    with pytest.raises(ModelError, match=f"its first 8 bytes announce a header of {2**60} bytes in a file of 10"):
        read_header(path)
    path.write_bytes(b"\x01\x00")
    with pytest.raises(ModelError, match="its first 8 bytes announce a header of 1 bytes in a file of 2"):
        read_header(path)


@pytest.mark.parametrize("length", range(8, 200, 7))
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, length: int) -> None:
    path = write_shard(tmp_path / "w.safetensors", "a", "b")
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ModelError, match="is not a whole safetensors file"):
        read_header(path)


def test_identity_sees_one_changed_byte_of_a_small_file(tmp_path: Path) -> None:
    path = write_shard(tmp_path / "w.safetensors", "a", "b")
    before = file_identity(path)
    assert before == file_identity(path)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    after = file_identity(path)
    assert (after.size, after.header_sha256) == (before.size, before.header_sha256)
    assert after.sampled_sha256 != before.sampled_sha256


def test_identity_of_a_large_file_reads_samples_of_all_of_it(tmp_path: Path) -> None:
    path, size = tmp_path / "large.safetensors", 80 * 2**20
    with path.open("wb") as stream:
        stream.write((2).to_bytes(8, "little") + b"{}")
        stream.truncate(size)
    before = file_identity(path)
    assert before == file_identity(path)
    # a changed megabyte holds three blocks of the sample, wherever it is
    for start in (64, size // 3, size - 2**20):
        with path.open("r+b") as stream:
            stream.seek(start)
            stream.write(b"\x01" * 2**20)
        assert file_identity(path).sampled_sha256 != before.sampled_sha256
        with path.open("r+b") as stream:
            stream.seek(start)
            stream.write(bytes(2**20))
