"""What long work has done so far, a line per task: an interrupted run goes on from it, and loses what was in hand."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from tokcarve.passes.errors import ArtifactError

__all__ = ["LineJournal", "Record", "Task", "differences", "read_journal"]

Task = Mapping[str, Any]
"""What shall be done, as JSON."""

Record = dict[str, Any]
"""What came of a task, as JSON; floats come back as they were."""

_FORMAT = 1


def read_journal(path: Path) -> tuple[dict[str, Any], dict[str, Record]] | None:
    """The facts of a journal and its records by the hash of their task; None for a file that is none.

    A last line that was not written whole is passed over.
    """
    lines = [_parsed(line) for line in path.read_text(encoding="utf-8", errors="replace").splitlines()]
    head = lines[0] if lines else None
    if head is None or head.get("format") != _FORMAT or not isinstance(head.get("facts"), dict):
        return None
    return head["facts"], {line["task"]: line["record"] for line in lines[1:] if line is not None and "task" in line}


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A sentence for each of the facts of `now` that was another then."""
    return [f"{name} was {then.get(name)} and is {now[name]}" for name in now if then.get(name) != now[name]]


class LineJournal:
    """Records by task, in a file or (path None) nowhere.

    `facts` are what every record depends on beside its task; `kept` are records that count, as `read_journal` gives
    them: the file is written anew from them before the first new one. Records made in this run are not held in memory.
    """

    def __init__(self, path: Path | None, facts: Mapping[str, Any], kept: Mapping[str, Record]) -> None:
        self.path, self.facts, self.kept = path, dict(facts), dict(kept)
        self._stream: TextIO | None = None

    def get(self, task: Task) -> Record | None:
        """What an earlier run made of `task`."""
        return self.kept.get(_key(task))

    def put(self, task: Task, record: Record) -> None:
        """Keeps a record; it survives the process from here on."""
        if self.path is None:
            return
        if self._stream is None:
            self._stream = self._open(self.path)
        self._stream.write(json.dumps({"task": _key(task), "record": record}) + "\n")
        self._stream.flush()

    def close(self, *, done: bool) -> None:
        """Closes the file, and with `done` removes it."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        if done and self.path is not None:
            self.path.unlink(missing_ok=True)

    def _open(self, path: Path) -> TextIO:
        """Written anew from what counts, so that a line cut short does not stay in the middle."""
        fresh = path.with_name(path.name + ".new")
        lines = [{"format": _FORMAT, "facts": self.facts}]
        lines += [{"task": key, "record": record} for key, record in self.kept.items()]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
            fresh.replace(path)
            return path.open("a", encoding="utf-8")
        except OSError as error:
            raise ArtifactError(
                f"{path}, where work that is done is kept, cannot be written ({error.strerror}); choose another place, "
                "or make room there"
            ) from None


def _key(task: Task) -> str:
    return hashlib.sha256(json.dumps(task, sort_keys=True).encode()).hexdigest()


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
