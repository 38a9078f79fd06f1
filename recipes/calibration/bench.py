"""What every calibration stands on: a model, its samples split in two, and who does the work."""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from tokcarve.passes.checkpoint import Checkpoint, weights_identity
from tokcarve.passes.errors import SampleError, TokcarveError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.inputs.samples import SampleSet, open_samples
from tokcarve.recipes.calibration.journal import Journal, journal_of
from tokcarve.recipes.calibration.pool import Progress, Runner, pool_of
from tokcarve.recipes.calibration.work import Job
from tokcarve.recipes.schema import Calibration

__all__ = ["Bench", "How", "bench_of", "open_bench"]

LEAST = 4
_DEPENDS = ("tokcarve", "torch", "transformers", "numpy", "pillow", "tokenizers")


@dataclass(frozen=True, kw_only=True)
class How:
    """What does not change the result: where the work is done, whether it is resumed, who is told of it."""

    on: str = "local"
    resume: bool = False
    tell: Progress | None = None


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Three quarters of the samples calibrate, the last quarter is held out and measures what that is worth."""

    geometry: Geometry
    set: SampleSet
    runner: Runner[Journal]
    quantile: float | None = None
    steps: int | None = None

    @property
    def samples(self) -> range:
        """All samples by number."""
        return range(len(self.set))

    @property
    def learning(self) -> range:
        """Those that calibrate."""
        return self.samples[: len(self.set) - len(self.set) // 4]

    @property
    def held(self) -> range:
        """Those held out."""
        return self.samples[len(self.learning) :]

    @property
    def record(self) -> dict[str, Any]:
        """What the manifest says of the samples, without the path at which they lie."""
        about, place = self.set, Path(self.set.source)
        root = f"{place if place.is_dir() else place.parent}{os.sep}"
        return {
            "samples": place.name or about.source,
            "sha256": about.sha256,
            "count": len(about),
            "held_out": len(self.held),
            "seed": about.seed,
            "skipped": [text.replace(root, "") for text in about.skipped],
        }


def bench_of(
    checkpoint: Checkpoint, geometry: Geometry, asked: Calibration, how: How | None = None, journal: Path | None = None
) -> Bench:
    """The bench for `asked`; nothing of the model is read before there is work.

    SampleError for fewer than four samples, and for a journal of other samples, model or versions.
    """
    how = how if how is not None else How()
    samples = open_samples(asked.samples, count=asked.count, seed=asked.seed)
    if len(samples) < LEAST:
        raise SampleError(f"sample set {asked.samples} holds {len(samples)} images; calibration needs {LEAST} or more")
    job = Job(
        checkpoint=checkpoint.path.absolute(),
        samples=samples.source,
        count=asked.count,
        seed=asked.seed,
        sha256=samples.sha256,
        threads=torch.get_num_threads(),
    )
    facts = {
        "model": weights_identity(checkpoint).identity,
        "sample set": samples.sha256,
        "versions": " ".join(f"{name} {version(name)}" for name in _DEPENDS) + f" python {platform.python_version()}",
    }
    runner = Runner(pool_of(how.on, job), Journal(journal, facts, resume=how.resume), how.tell)
    return Bench(geometry=geometry, set=samples, runner=runner, quantile=asked.quantile, steps=asked.steps)


@contextmanager
def open_bench(checkpoint: Checkpoint, geometry: Geometry, asked: Calibration, out: Path, how: How) -> Iterator[Bench]:
    """`bench_of` with a journal beside `out`: removed unless the work was cut short, to be resumed."""
    bench = bench_of(checkpoint, geometry, asked, how, journal_of(out))
    done = False
    try:
        yield bench
        done = True
    except TokcarveError:
        done = True  # what was refused is not gone on with
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(bench.runner.journal.told) from None
    finally:
        bench.runner.pool.close()
        bench.runner.journal.close(done=done)
