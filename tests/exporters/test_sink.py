"""A file that threads sum up and write: its bytes and their sums, past the page cache and through it."""

import errno
import fcntl
import hashlib
import os
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tokcarve.exporters import sink as sink_module
from tokcarve.exporters.sink import Sink

PAGE = 4096
SIZES = (0, 1, 63, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE, 5 * PAGE + 7, 17 * PAGE, 40 * PAGE + 3)


def numbers(size: int, seed: int) -> Tensor:
    return torch.randint(0, 256, (size,), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sink_module, "_ROOM", 16 * PAGE)


@given(sizes=st.lists(st.sampled_from(SIZES), max_size=12), direct=st.booleans(), flushed=st.integers(0, 12))
def test_the_file_is_what_was_appended(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], direct: bool, flushed: int
) -> None:
    path, parts = tmp_path_factory.mktemp("sink") / "file", [numbers(size, at) for at, size in enumerate(sizes)]
    raw = [part.numpy().tobytes() for part in parts]
    with Sink(path, direct=direct) as sink:
        digests = []
        for at, part in enumerate(parts):
            sink.append(part)
            digests.append(sink.digest())
            if at == flushed:
                sink.flush()
                assert path.read_bytes() == b"".join(raw[: at + 1])
    assert path.read_bytes() == b"".join(raw) and sink.size == sum(sizes)
    for at, digest in enumerate(digests):
        assert digest.result() == hashlib.sha256(b"".join(raw[: at + 1])).hexdigest()


@pytest.mark.parametrize("before", [64, 3])
@pytest.mark.parametrize("direct", [False, True])
def test_a_turned_matrix_is_written_as_it_reads(tmp_path: Path, direct: bool, before: int) -> None:
    matrix = torch.randn(300, 170).half()
    with Sink(tmp_path / "file", direct=direct) as sink:
        sink.append(numbers(before, 0))
        sink.append(matrix.t())
        sink.pad(100)
    found = (tmp_path / "file").read_bytes()
    assert found[before:-100] == matrix.t().contiguous().numpy().tobytes() and found[-100:] == bytes(100)


def test_what_is_appended_may_change_afterwards(tmp_path: Path) -> None:
    part = torch.zeros(3 * PAGE, dtype=torch.uint8)
    with Sink(tmp_path / "file", direct=True) as sink:
        for at in range(40):
            sink.append(part.fill_(at))
    assert (tmp_path / "file").read_bytes() == b"".join(bytes([at]) * 3 * PAGE for at in range(40))


def test_a_disk_that_knows_no_other_way_is_written_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = os.open, list[int]()

    def without(path: Path, flags: int, mode: int = 0o777) -> int:
        asked.append(flags)
        if flags & sink_module._DIRECT:
            raise OSError(errno.EINVAL, "no such way")
        return real(path, flags, mode)

    monkeypatch.setattr(os, "open", without)
    part = numbers(100 * PAGE + 5, 1)
    with Sink(tmp_path / "file", direct=True) as sink:
        sink.append(part)
    monkeypatch.undo()
    assert (tmp_path / "file").read_bytes() == part.numpy().tobytes() and len(asked) == 2


def test_a_disk_that_wants_larger_blocks_is_written_through_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, refused = os.write, list[int]()

    def once(file: int, data: memoryview) -> int:
        if not refused:
            refused.append(len(data))
            raise OSError(errno.EINVAL, "not so")
        return real(file, data)

    part = numbers(100 * PAGE + 5, 1)
    with Sink(tmp_path / "file", direct=True) as sink:
        monkeypatch.setattr(os, "write", once)
        sink.append(part)
    monkeypatch.undo()
    assert refused and (tmp_path / "file").read_bytes() == part.numpy().tobytes()


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, data: memoryview) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"), Sink(tmp_path / "file") as sink:
        sink.append(numbers(5, 0))


def test_all_but_the_end_passes_the_cache_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, past = os.write, list[bool]()

    def told(file: int, data: memoryview) -> int:
        done = real(file, data)
        past.append(bool(fcntl.fcntl(file, fcntl.F_GETFL) & sink_module._DIRECT))
        return done

    with Sink(tmp_path / "file", direct=True) as sink:
        if not sink._direct:
            pytest.skip("the disk of temporary files knows no O_DIRECT")
        monkeypatch.setattr(os, "write", told)
        for at in range(40):
            sink.append(numbers(5 * PAGE + 7, at))
    monkeypatch.undo()
    assert past[:-1] == [True] * (len(past) - 1) and len(past) > 10 and not past[-1]
