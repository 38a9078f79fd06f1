"""Tasks in, records out, in order: done by a worker here, or by many on Ray, and kept in a journal."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from tokcarve.passes.errors import RecipeError
from tokcarve.recipes.journal import LineJournal, Record, Task

__all__ = ["Job", "Local", "Pool", "Progress", "Runner", "pool_of"]

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, how much of it is done, how much there is)."""


J = TypeVar("J", bound=LineJournal)


@runtime_checkable
class Job(Protocol):
    """What tasks are about: small enough to be sent to where they are done."""

    @property
    def threads(self) -> int | None:
        """Threads of torch in a worker elsewhere; None leaves them to it."""

    def open(self) -> Callable[[Task], Record]:
        """A worker, with everything open that tasks need."""


class Pool(ABC):
    """Who does tasks of a job."""

    job: Job

    def here(self) -> Any:
        """A worker in this process, for what cannot be cut into tasks."""
        return self.job.open()

    @abstractmethod
    def imap(self, tasks: Iterable[Task]) -> Iterator[tuple[int, Record]]:
        """Each task's number and record, as they are done."""

    @abstractmethod
    def close(self) -> None:
        """Lets go of what is held."""


class Local(Pool):
    """A worker in this process, made when there is a task for it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.worker: Any = None

    def here(self) -> Any:
        """The one that does the tasks."""
        if self.worker is None:
            self.worker = self.job.open()
        return self.worker

    def imap(self, tasks: Iterable[Task]) -> Iterator[tuple[int, Record]]:
        """One after the other."""
        for number, task in enumerate(tasks):
            yield number, self.here()(task)

    def close(self) -> None:
        """Drops the model."""
        self.worker = None


def pool_of(on: str, job: Job) -> Pool:
    """The pool that `--on` names: local, ray (a cluster on this machine), or ray:ADDRESS."""
    kind, _, address = on.partition(":")
    if on == "local":
        return Local(job)
    if kind == "ray":
        from tokcarve.recipes.calibration.on_ray import OnRay

        return OnRay(job, f"{kind}:{address}" if address.startswith("//") else address or None)
    raise RecipeError(f"--on {on} is no place to work; choose local, ray, or ray:ADDRESS")


class Runner(Generic[J]):
    """Does tasks once: what the journal has is not done again."""

    def __init__(self, pool: Pool, journal: J, tell: Progress | None = None) -> None:
        self.pool, self.journal = pool, journal
        self.tell: Progress = tell if tell is not None else lambda what, done, total: None

    def map(
        self, tasks: Iterable[Task], what: str, *, keep: Callable[[Record], bool] | None = None
    ) -> Iterator[Record]:
        """The records of `tasks`, in their order; `what` names the work for people. What `keep` says no to is
        not kept in the journal, which holds JSON alone."""
        tasks = list(tasks)
        found = {number: record for number, task in enumerate(tasks) if (record := self.journal.get(task)) is not None}
        missing = [number for number in range(len(tasks)) if number not in found]
        made = self.pool.imap(tasks[number] for number in missing)
        self.tell(what, len(found), len(tasks))
        done = len(found)
        for number in range(len(tasks)):
            while number not in found:
                place, record = next(made)
                if keep is None or keep(record):
                    self.journal.put(tasks[missing[place]], record)
                found[missing[place]] = record
                done += 1
                self.tell(what, done, len(tasks))
            yield found.pop(number)
