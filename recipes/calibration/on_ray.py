"""The same workers on a Ray cluster: one actor per CPU, and a task that a lost actor had is done by another."""

import socket
from collections.abc import Iterable, Iterator
from typing import Any

from tokcarve.passes.errors import RecipeError, TokcarveError
from tokcarve.recipes.calibration.pool import Job, Pool
from tokcarve.recipes.journal import Record, Task

__all__ = ["OnRay"]

PATIENCE = 10  # seconds in which a cluster must answer
WAITING = 2  # tasks given out to each actor: one in hand, one to go on with


class OnRay(Pool):
    """Workers of `job` on the cluster at `address`, or on one that is started here and ends with us."""

    def __init__(self, job: Job, address: str | None) -> None:
        self.ray, self.job = _ray(), job
        self.started = not self.ray.is_initialized()
        if self.started:
            self._connect(address)
        self.actors: list[Any] = []

    def imap(self, tasks: Iterable[Task]) -> Iterator[tuple[int, Record]]:
        """As they are done; in no order."""
        coming = enumerate(tasks)
        out: dict[Any, tuple[int, Any]] = {}
        while True:
            for actor in self._actors():
                while sum(worker is actor for _, worker in out.values()) < WAITING:
                    number, task = next(coming, (-1, None))
                    if task is None:
                        break
                    out[actor.run.remote(task)] = number, actor
            if not out:
                return
            (done,), _ = self.ray.wait(list(out), num_returns=1)
            number, _ = out.pop(done)
            yield number, self._got(done)

    def close(self) -> None:
        """Lets the actors go, and the cluster if it was started here."""
        for actor in self.actors:
            self.ray.kill(actor)
        self.actors = []
        if self.started:
            self.ray.shutdown()

    def _connect(self, address: str | None) -> None:
        quiet = {"log_to_driver": False, "include_dashboard": False} if address is None else {"log_to_driver": False}
        try:
            if address is not None:
                _reach(address)
            self.ray.init(address=address, configure_logging=False, **quiet)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            where = "a cluster on this machine" if address is None else address
            raise RecipeError(f"--on ray cannot reach {where} ({str(error).splitlines()[0]}); give local") from None

    def _actors(self) -> list[Any]:
        if not self.actors:
            kind = self.ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=-1)(_Actor)
            count = max(1, int(self.ray.cluster_resources().get("CPU", 1)))
            self.actors = [kind.remote(self.job) for _ in range(count)]
        return self.actors

    def _got(self, done: Any) -> Record:
        try:
            record: Record = self.ray.get(done)
        except self.ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, TokcarveError):
                raise error.cause from None
            raise
        return record


class _Actor:
    """A worker that computes as the one in this process would: with as many threads."""

    def __init__(self, job: Job) -> None:
        import torch

        if job.threads is not None:
            torch.set_num_threads(job.threads)
        self.worker = job.open()

    def run(self, task: Task) -> Record:
        return self.worker(task)


def _reach(address: str) -> None:
    """Fails at once where nobody listens; Ray itself tries for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=PATIENCE).close()


def _ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError:
        raise RecipeError("--on ray needs Ray, which is not installed: pip install 'tokcarve[ray]'") from None
    return ray
