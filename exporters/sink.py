"""A file written from front to back while other threads sum it up and write it, past the page cache if it is large."""

import errno
import hashlib
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

__all__ = ["Sink"]

_ROOM = 1 << 24
"""Bytes of a buffer, a multiple of the page."""
_BUFFERS = 3  # one is filled while one is summed up and one is written
_PAGE = 4096
_DIRECT = getattr(os, "O_DIRECT", 0)


class Sink:
    """Context manager: what is appended is in the file `path` once it was left without an error.

    With `direct` the page cache is passed by where system and disk know how: it gains nothing from a file that does not
    fit, and to fill it takes the processor longer than the disk takes to write.

    Raises OSError where the disk cannot be written, as late as when it is left.
    """

    def __init__(self, path: Path, *, direct: bool = False) -> None:
        self.path, self.size = path, 0
        self._flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | getattr(os, "O_BINARY", 0) | (_DIRECT if direct else 0)

    def __enter__(self) -> "Sink":
        self._file = self._open()
        self._direct = bool(self._flags & _DIRECT)
        # a mapping starts on a page, as what passes the cache by must
        self._buffers = [torch.frombuffer(mmap.mmap(-1, _ROOM), dtype=torch.uint8) for _ in range(_BUFFERS)]
        self._pending: list[list[Future[None]]] = [[] for _ in self._buffers]
        self._at, self._end = 0, 0
        self._sum, self._summing, self._writing = hashlib.sha256(), ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.flush()
        finally:
            self._summing.shutdown(cancel_futures=error is not None)
            self._writing.shutdown(cancel_futures=error is not None)
            os.close(self._file)

    def append(self, part: Tensor) -> None:
        """The bytes of `part` in the order of its shape, however it lies in memory."""
        bytes_ = part.numel() * part.element_size()
        if bytes_ > _ROOM // 2:
            flat = part.contiguous().reshape(-1).view(torch.uint8)
            for start in range(0, bytes_, _ROOM // 2):
                self._append(flat[start : start + _ROOM // 2])
        elif bytes_:
            self._append(part)

    def pad(self, count: int) -> None:
        """As many zeros."""
        self.append(torch.zeros(count, dtype=torch.uint8))

    def digest(self) -> Future[str]:
        """SHA-256 of what was appended so far, once it is summed up."""
        return self._summing.submit(lambda: self._sum.copy().hexdigest())

    def flush(self) -> None:
        """Makes what was appended readable by others."""
        self._drain(whole=True)
        for at in range(_BUFFERS):
            self._settle(at)

    def _append(self, part: Tensor) -> None:
        count = part.numel() * part.element_size()
        if self._end + count > _ROOM:
            self._drain(whole=not self._direct)
        room = self._buffers[self._at][self._end : self._end + count]
        if self._end % part.element_size():
            part = part.contiguous().reshape(-1).view(torch.uint8)
        room.view(part.dtype).view(part.shape).copy_(part)
        self._pending[self._at].append(self._summing.submit(self._sum.update, room.numpy().data))
        self._end += count
        self.size += count

    def _drain(self, *, whole: bool) -> None:
        """Hands on what is in the buffer and takes the next, into which goes what does not fill a page, unless the
        `whole` is to be written."""
        end = self._end if whole else self._end // _PAGE * _PAGE
        rest = self._buffers[self._at][end : self._end]
        ready = self._buffers[self._at][:end].numpy().data
        self._pending[self._at].append(self._writing.submit(self._put, ready))
        self._at = (self._at + 1) % _BUFFERS
        self._settle(self._at)
        self._end = len(rest)
        self._buffers[self._at][: self._end] = rest

    def _settle(self, at: int) -> None:
        for one in self._pending[at]:
            one.result()
        self._pending[at] = []

    def _open(self) -> int:
        try:
            return os.open(self.path, self._flags, 0o666)
        except OSError as error:
            if error.errno != errno.EINVAL or not self._flags & _DIRECT:
                raise
            # file systems in memory, among others, know no other way than their cache
            self._flags &= ~_DIRECT
            return os.open(self.path, self._flags, 0o666)

    def _put(self, ready: memoryview) -> None:
        while ready:
            try:
                done = os.write(self._file, ready)
            except OSError as error:
                if error.errno != errno.EINVAL or not self._direct:
                    raise
                # a disk may want more than pages, and the end of a file seldom is one
                self._through_cache()
            else:
                ready = ready[done:]

    def _through_cache(self) -> None:
        import fcntl  # is where O_DIRECT is

        fcntl.fcntl(self._file, fcntl.F_SETFL, fcntl.fcntl(self._file, fcntl.F_GETFL) & ~_DIRECT)
        self._direct = False
