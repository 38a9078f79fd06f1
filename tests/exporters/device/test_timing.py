"""Distributions, taking turns, and the share of nodes."""

import time
from pathlib import Path

import numpy as np
from toy_face import write_toy

from tokcarve.exporters.device.intervals import Interval
from tokcarve.exporters.device.session import open_face
from tokcarve.exporters.device.timing import Distribution, distribution, node_share, time_in_turn


def steady(milliseconds: float) -> Distribution:
    value = float(milliseconds)
    return Distribution(p50=value, p95=value, mean=value, least=value)


def test_distribution_by_hand() -> None:
    assert distribution([5.0]) == steady(5)
    assert distribution([4.0, 1.0, 3.0, 2.0]) == Distribution(p50=3.0, p95=4.0, mean=2.5, least=1.0)
    hundred = distribution([float(value) for value in range(100, 0, -1)])
    assert (hundred.p50, hundred.p95, hundred.least) == (51, 95, 1)
    assert hundred.interval == Interval(low=4.0, high=97.0)  # samples that only fall tell little of their median
    few = distribution([3.0, 1.0, 4.0, 1.5, 5.0, 2.0])
    assert few.interval == Interval(low=1.0, high=5.0) and few.record()["interval_ms"] == [1.0, 5.0]


def test_ways_take_turns_in_changing_order() -> None:
    calls: list[str] = []
    ticks: list[int] = []
    samples = time_in_turn(
        [lambda turn: calls.append(f"a{turn}"), lambda turn: calls.append(f"b{turn}")],
        warm_up=1,
        repeats=2,
        tick=lambda: ticks.append(len(calls)),
    )
    assert calls == ["a0", "b0", "b1", "a1", "a2", "b2"]
    assert ticks == [2, 4, 6] and [len(one) for one in samples] == [2, 2]


def test_the_slower_way_takes_longer() -> None:
    fast, slow = time_in_turn([lambda _: None, lambda _: time.sleep(0.002)], warm_up=0, repeats=3, tick=lambda: None)
    assert min(slow) >= 2 > max(fast)


def test_share_of_selection_nodes(tmp_path: Path) -> None:
    write_toy(tmp_path)
    face = open_face(tmp_path, threads=1)
    feeds = {"pixel_values": np.zeros((1, 3, 28, 28), np.float32)}
    share, own = (node_share(face, "vision", feeds, prefix=prefix) for prefix in ("tokcarve_select", "own"))
    assert 0 < share < 1 and 0 < own < 1
    assert node_share(face, "vision", feeds, prefix="nothing") == 0
    assert not list(tmp_path.glob("*.json*.json"))
