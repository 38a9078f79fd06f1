"""A directory that appears whole or not at all: written beside its place, synced, renamed."""

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from tokcarve.passes.errors import ArtifactError

__all__ = ["check_file", "check_target", "copy_file", "replace_directory", "replace_file", "write_file"]

_LEFTOVER = re.compile(r"\.(?P<name>.+)\.tokcarve-(?P<pid>\d+)-[0-9a-f]{8}\.(part|old)")


def check_target(place: Path) -> None:
    """Raises ArtifactError if a directory could not be put at `place`: a file is there, or no parent can be written."""
    if place.exists() and not place.is_dir():
        raise ArtifactError(f"{place} is a file; choose another -o")
    parent = next(folder for folder in place.parents if folder.exists())
    if not parent.is_dir():
        raise ArtifactError(f"{parent} is a file, so nothing can be written under it; choose another -o")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise ArtifactError(f"{parent} cannot be written, so {place.name} cannot be put there; choose another -o")


def check_file(place: Path, suffixes: tuple[str, ...]) -> None:
    """Raises ArtifactError if a file could not be put at `place`: it has another suffix than `suffixes`, a directory is
    there, or its folder is missing or cannot be written."""
    if place.suffix.lower() not in suffixes:
        raise ArtifactError(f"-o {place} is no {' or '.join(suffixes)} file; name it so")
    if place.is_dir():
        raise ArtifactError(f"{place} is a directory; choose another -o")
    if not place.parent.is_dir():
        raise ArtifactError(f"{place.parent} is no directory, so {place.name} cannot be put there; choose another -o")
    if not os.access(place.parent, os.W_OK | os.X_OK):
        raise ArtifactError(f"{place.parent} cannot be written, so {place.name} cannot be put there; choose another -o")


def replace_file(place: Path, content: str | bytes) -> None:
    """A file that appears whole or not at all; ArtifactError where the disk cannot be written."""
    work = _sibling(place, "part")
    try:
        write_file(work, content)
        _sync(work)
        os.replace(work, place)
    except OSError as error:
        raise _unwritable(place, error) from None
    finally:
        work.unlink(missing_ok=True)


@contextlib.contextmanager
def replace_directory(place: Path) -> Iterator[Path]:
    """A fresh directory to fill; when the block ends well it takes the place of what is at `place`.

    When the block fails, or the process dies, `place` is as it was; between the last two renames it is missing. What
    dead processes left beside it is removed. Raises ArtifactError where the disk cannot be written.
    """
    work = _sibling(place, "part")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _sweep(place)
        work.mkdir()
        yield work
        _sync_tree(work)
        _swap(work, place)
    except OSError as error:
        raise _unwritable(place, error) from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_file(path: Path, content: str | bytes) -> None:
    """Write bytes, or UTF-8 text with newlines as they are."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)


def copy_file(source: Path, target: Path) -> None:
    """Copy the bytes of a file, not its dates or rights."""
    shutil.copyfile(source, target)


def _sibling(place: Path, kind: str) -> Path:
    return place.with_name(f".{place.name}.tokcarve-{os.getpid()}-{secrets.token_hex(4)}.{kind}")


def _swap(work: Path, place: Path) -> None:
    old = _sibling(place, "old")
    replaced = place.exists()
    if replaced:
        os.rename(place, old)
    try:
        os.rename(work, place)
    except BaseException:
        if replaced:
            os.rename(old, place)
        raise
    _sync(place.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sweep(place: Path) -> None:
    for path in place.parent.iterdir():
        match = _LEFTOVER.fullmatch(path.name)
        if match and match["name"] == place.name and not psutil.pid_exists(int(match["pid"])):
            shutil.rmtree(path, ignore_errors=True)


def _sync_tree(directory: Path) -> None:
    for folder, _, names in os.walk(directory):
        for name in names:
            _sync(Path(folder) / name)
        _sync(Path(folder))


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unwritable(place: Path, error: OSError) -> ArtifactError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ArtifactError(f"{place} cannot be written: the disk is full; free some space or choose another -o")
    reason = error.strerror or type(error).__name__
    return ArtifactError(f"{place} cannot be written ({reason}); make it writable or choose another -o")
