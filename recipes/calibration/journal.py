"""What calibration has done so far, a line per task: an interrupted run goes on from it, and loses what was in hand."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tokcarve.passes.errors import SampleError

__all__ = ["Journal", "Record", "Task", "journal_of"]

Task = Mapping[str, Any]
"""What a worker shall do, as JSON: "do" names it, the rest are its arguments."""

Record = dict[str, Any]
"""What came of a task, as JSON; floats come back as they were."""

_FORMAT = 1


def journal_of(out: Path) -> Path:
    """Where the calibration of the artifact `out` keeps its journal."""
    return out.parent / f".{out.name}.calibration.jsonl"


class Journal:
    """Records by task, in a file or (path None) nowhere.

    `facts` are what every record depends on beside its task: model, samples, versions. With `resume`, the records of
    `path` count, and SampleError is raised when they were made under other facts; else they are thrown away. A last
    line that was not written whole is passed over. Records made in this run are not held in memory.
    """

    def __init__(self, path: Path | None, facts: Mapping[str, Any], *, resume: bool = False) -> None:
        self.path, self.facts, self.resume = path, dict(facts), resume
        self.kept = self._read() if resume and path is not None and path.is_file() else {}
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

    def save(self, done: int, state: Mapping[str, Tensor], of: str) -> None:
        """Keeps what `of` has gathered from the first `done` tasks, in place of what was kept so."""
        if self.path is None:
            return
        place = self._place(self.path)
        fresh = place.with_name(place.name + ".new")
        save_file(dict(state), fresh, {"facts": json.dumps(self.facts), "done": str(done), "of": of})
        fresh.replace(place)

    def saved(self, of: str) -> tuple[int, dict[str, Tensor]]:
        """What `save` kept of `of`, where a run is resumed; (0, {}) where there is nothing of it."""
        if not self.resume or self.path is None or not self._place(self.path).is_file():
            return 0, {}
        with safe_open(self._place(self.path), "pt") as stored:
            about = stored.metadata()
            self._check(json.loads(about["facts"]))
            if about["of"] != of:
                return 0, {}
            return int(about["done"]), {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118

    @property
    def told(self) -> str:
        """What to say of it to somebody who interrupts the work."""
        begun = self.path is not None and (self.path.is_file() or self._place(self.path).is_file())
        return "what was calibrated so far is kept, go on with --resume" if begun else ""

    def close(self, *, done: bool) -> None:
        """Closes the file, and with `done` removes it."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
        if done and self.path is not None:
            self.path.unlink(missing_ok=True)
            self._place(self.path).unlink(missing_ok=True)

    def _open(self, path: Path) -> TextIO:
        """Written anew from what counts, so that a line cut short does not stay in the middle."""
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(path.name + ".new")
        lines = [{"format": _FORMAT, "facts": self.facts}]
        lines += [{"task": key, "record": record} for key, record in self.kept.items()]
        fresh.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        fresh.replace(path)
        return path.open("a", encoding="utf-8")

    def _read(self) -> dict[str, Record]:
        assert self.path is not None
        lines = [_parsed(line) for line in self.path.read_text(encoding="utf-8").splitlines()]
        head = lines[0] if lines else None
        if head is None or head.get("format") != _FORMAT:
            raise SampleError(f"{self.path} is no journal of a calibration; remove it, or leave --resume out")
        self._check(head["facts"])
        return {line["task"]: line["record"] for line in lines[1:] if line is not None and "task" in line}

    @staticmethod
    def _place(path: Path) -> Path:
        return path.with_suffix(".safetensors")

    def _check(self, then: Mapping[str, Any]) -> None:
        changed = [name for name in self.facts if then.get(name) != self.facts[name]]
        if changed:
            spelled = "; ".join(f"{name} was {then.get(name)} and is {self.facts[name]}" for name in changed)
            raise SampleError(
                f"{self.path} cannot be resumed: {spelled}; give what was given then, or leave --resume out to begin "
                "again"
            )


def _key(task: Task) -> str:
    return hashlib.sha256(json.dumps(task, sort_keys=True).encode()).hexdigest()


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
