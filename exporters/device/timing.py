"""Timing two ways of doing one thing side by side, and what a graph's nodes cost.

Both ways are run in turn, in changing order, after a warm-up, so that a machine that slows down slows both.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from tokcarve.exporters.device.intervals import Interval, median_interval
from tokcarve.exporters.device.session import Array, Face

__all__ = ["SELECTOR", "Distribution", "distribution", "node_share", "profiled_share", "time_in_turn"]

SELECTOR = "tokcarve_select"
"""Names of nodes that belong to token selection start with this."""

_PROFILED_RUNS = 5


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """Milliseconds, or ratios, over the rounds; `interval` is that of the median, None where too little is known."""

    p50: float
    p95: float
    mean: float
    least: float
    interval: Interval | None = None

    def record(self) -> dict[str, Any]:
        """These milliseconds as JSON."""
        interval = None if self.interval is None else [self.interval.low, self.interval.high]
        return {
            "p50_ms": self.p50,
            "p95_ms": self.p95,
            "mean_ms": self.mean,
            "min_ms": self.least,
            "interval_ms": interval,
        }


def distribution(samples: Sequence[float]) -> Distribution:
    """The distribution of samples, at least one, in the order in which they came; percentiles are samples themselves,
    the upper one where two tie."""
    ordered = sorted(samples)
    last = len(ordered) - 1
    return Distribution(
        p50=ordered[len(ordered) // 2],
        p95=ordered[min(last, -(-95 * len(ordered) // 100) - 1)],
        mean=sum(ordered) / len(ordered),
        least=ordered[0],
        interval=median_interval(samples),
    )


def time_in_turn(
    ways: Sequence[Callable[[int], object]], *, warm_up: int, repeats: int, tick: Callable[[], None]
) -> tuple[list[float], ...]:
    """Milliseconds of every way, `repeats` each; each call gets its number, and `tick` follows every round.

    A round runs all ways once, starting with another one each time.
    """
    samples: tuple[list[float], ...] = tuple([] for _ in ways)
    for turn in range(warm_up + repeats):
        for place in range(len(ways)):
            chosen = (turn + place) % len(ways)
            started = perf_counter()
            ways[chosen](turn)
            spent = (perf_counter() - started) * 1000
            if turn >= warm_up:
                samples[chosen].append(spent)
        tick()
    return samples


def node_share(
    face: Face, name: str, feeds: Mapping[str, Array], *, prefix: str = SELECTOR, budget: int | None = None
) -> float:
    """The share, in 0..1, of a pruned graph's node time that nodes named `prefix...` take.

    Measured by ONNX Runtime's own profiler in a session of its own, because timing nodes slows a graph down.
    """
    with TemporaryDirectory() as folder:
        graph = face.open(name, budget=budget, profile_to=Path(folder) / "profile")
        for _ in range(_PROFILED_RUNS):
            graph.run(feeds)
        return profiled_share(Path(graph.session.end_profiling()), _PROFILED_RUNS, prefix=prefix)


def profiled_share(profile: Path, runs: int, *, prefix: str = SELECTOR) -> float:
    """That share in a file of ONNX Runtime's profiler over `runs` runs, of which the first warms up."""
    events = json.loads(profile.read_text(encoding="utf-8"))
    kernels = [event for event in events if event.get("cat") == "Node" and event["name"].endswith("_kernel_time")]
    warm = kernels[len(kernels) // runs :]
    total = sum(event["dur"] for event in warm)
    return sum(event["dur"] for event in warm if event["name"].startswith(prefix)) / total if total else 0.0
