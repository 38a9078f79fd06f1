"""`export` of a 7B-shaped checkpoint of random fp16 weights: seconds beside `cp` of its shards, and peak memory.

    python benchmarks/stream_7b.py [--method fastv] [--precision fp16] [--place DIR]

Writes up to 42 GB, or 28 GB in another precision than fp32, into a temporary directory below DIR. The checkpoint is
made shard by shard, carved and exported, in fp16 a second time with --reference-weights, each in a process of its own,
and copied before and between; the page cache is as the step before left it. Bytes that another name on the disk has too
are not "written".
"""

import argparse
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from sparse_7b import write_checkpoint

from tokcarve.exporters.precision import PRECISIONS


def small_numbers(rng: np.random.Generator, size: int) -> bytes:
    """Random fp16 numbers of either sign, from 0.002 to 0.03 in size."""
    bits = rng.integers(0, 2**16, size // 2, np.uint16)
    return ((bits & 0x8FFF) | 0x1800).astype(np.uint16).tobytes()


def timed(command: list[str]) -> tuple[float, float]:
    """Seconds, and the largest resident GiB of any process so far."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20


def copied(base: Path, copy: Path) -> float:
    """Seconds that `cp` of the shards takes, printed as a row."""
    seconds, peak = timed(["cp", "-r", str(base), str(copy)])
    written = sum(path.stat().st_size for path in copy.iterdir()) / 1e9
    subprocess.run(["rm", "-r", str(copy)], check=True)
    print(f"| cp of the shards | {seconds:.0f} | {written:.1f} | {peak:.2f} |", flush=True)
    return seconds


def main() -> None:
    """Print one row per step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="fastv")
    parser.add_argument("--precision", default="fp32", choices=list(PRECISIONS))
    parser.add_argument("--place", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.place) as folder:
        base, copy, out = (Path(folder) / name for name in ("base", "copy", "out"))
        base.mkdir()
        rng = np.random.default_rng(0)
        total = write_checkpoint(base, lambda size: small_numbers(rng, size))
        print(
            f"checkpoint of {total / 1e9:.1f} GB of random fp16 numbers\n\n| step | seconds | written GB | peak GiB |"
        )
        print("|---|--:|--:|--:|", flush=True)
        plain, took = [copied(base, copy)], dict[str, float]()
        verbs = {
            "compress": ["compress", str(base), "--method", options.method, "--tokens", "64", "--out", str(out)],
            f"export in {options.precision}": ["export", str(out), "--precision", options.precision],
        }
        if options.precision == "fp16":
            verbs["the same with --reference-weights"] = [*verbs["export in fp16"], "--reference-weights"]
        for verb, words in verbs.items():
            # a weight file of the step before is no part of this one
            shutil.rmtree(out / "export", ignore_errors=True)
            if verb != "compress":
                plain.append(copied(base, copy))
            seconds, peak = timed([sys.executable, "-m", "tokcarve.cli", *words])
            own = (path.stat() for path in out.rglob("*") if path.is_file())
            written = sum(stat.st_size for stat in own if stat.st_nlink == 1) / 1e9
            print(f"| {verb} | {seconds:.0f} | {written:.1f} | {peak:.2f} |", flush=True)
            took[verb] = seconds
        plain.append(copied(base, copy))
        usual = statistics.median(plain)
        for verb, seconds in took.items():
            print(f"{verb}: {seconds / usual:.2f} times the median `cp`, {usual:.0f} s")


if __name__ == "__main__":
    main()
