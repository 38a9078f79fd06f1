"""What calibration has done so far: a line per task, and what was gathered as tensors beside it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from tokcarve.passes.errors import SampleError
from tokcarve.recipes.journal import LineJournal, Record, Task, differences, read_journal

__all__ = ["Journal", "Record", "Task", "journal_of"]


def journal_of(out: Path) -> Path:
    """Where the calibration of the artifact `out` keeps its journal."""
    return out.parent / f".{out.name}.calibration.jsonl"


class Journal(LineJournal):
    """A journal whose facts are model, samples and versions; what a worker does is said by "do" in a task.

    With `resume`, the records of `path` count, and SampleError is raised when they were made under other facts; else
    they are thrown away.
    """

    def __init__(self, path: Path | None, facts: Mapping[str, Any], *, resume: bool = False) -> None:
        self.resume = resume
        super().__init__(path, facts, {})
        if resume and path is not None and path.is_file():
            self.kept = self._read(path)

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
        super().close(done=done)
        if done and self.path is not None:
            self._place(self.path).unlink(missing_ok=True)

    def _read(self, path: Path) -> dict[str, Record]:
        found = read_journal(path)
        if found is None:
            raise SampleError(f"{path} is no journal of a calibration; remove it, or leave --resume out")
        self._check(found[0])
        return found[1]

    @staticmethod
    def _place(path: Path) -> Path:
        return path.with_suffix(".safetensors")

    def _check(self, then: Mapping[str, Any]) -> None:
        changed = differences(then, self.facts)
        if changed:
            raise SampleError(
                f"{self.path} cannot be resumed: {'; '.join(changed)}; give what was given then, or leave --resume "
                "out to begin again"
            )
