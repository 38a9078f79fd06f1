"""Peak memory of answering with one side of a face, measured in a process of its own.

Run as `python -m tokcarve.exporters.device.memory ARTIFACT pruned[:BUDGET]|unpruned [THREADS]`, it loads the four
graphs, does a prefill and one decode step, and prints what its memory, and that of a GPU, came to as one JSON object.
"""

import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from tokcarve.exporters.device.clocks import device_mib
from tokcarve.exporters.device.peak import peak_mib
from tokcarve.exporters.device.pipeline import Pipeline, greedy
from tokcarve.exporters.device.probe import probe
from tokcarve.exporters.device.session import open_face
from tokcarve.passes.errors import ExportError

__all__ = ["Memory", "fit", "measure_memory"]

_SPARE = 1.25


@dataclass(frozen=True, kw_only=True)
class Memory:
    """MiB of resident memory: before any graph was loaded, and at the peak; and of a GPU's own memory, what it came to
    (ONNX Runtime gives none back before it ends), None where there is none or it could not be read."""

    start_mib: float
    peak_mib: float
    device_mib: float | None


def measure_memory(artifact: Path, *, baseline: bool, threads: int | None, budget: int | None = None) -> Memory:
    """Memory of a fresh process that answers with one side; raises ExportError if it fails, with its last words."""
    side = "unpruned" if baseline else "pruned" if budget is None else f"pruned:{budget}"
    command = [sys.executable, "-P", "-m", __spec__.name, str(artifact), side]
    done = subprocess.run(command + ([str(threads)] if threads else []), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise ExportError(
            f"the {command[-1]} graphs of {artifact} did not run in a process of their own ({words[0]}); "
            f"if memory ran out, try a smaller batch or model"
        )
    return Memory(**json.loads(done.stdout.splitlines()[-1]))


def fit(memory: tuple[Memory, Memory], times: float = 1.0) -> bool:
    """Whether both sides can be loaded at once, with something to spare, when they take so many times what they took;
    where a GPU holds the graphs, its free memory is not asked."""
    wanted = times * sum(one.peak_mib - one.start_mib for one in memory)
    return bool(_SPARE * wanted < psutil.virtual_memory().available / 2**20)


def _main(artifact: str, side: str, threads: str | None = None) -> None:
    start, before = peak_mib(), device_mib()
    face = open_face(Path(artifact), int(threads) if threads else None)
    name, _, budget = side.partition(":")
    pipeline = Pipeline(face, baseline=name == "unpruned", budget=int(budget) if budget else None)
    pixels, ids, lengths = probe(pipeline)
    prefilled = pipeline.prefill(pipeline.embed(ids, pipeline.vision(pixels, ids, lengths)), lengths)
    pipeline.step(greedy(prefilled["logits"]), lengths, 0, pipeline.cache(prefilled))
    peak, after = peak_mib(), device_mib()
    device = after - before if before is not None and after is not None else None
    print(json.dumps(asdict(Memory(start_mib=start, peak_mib=peak, device_mib=device))))


if __name__ == "__main__":
    _main(*sys.argv[1:])
