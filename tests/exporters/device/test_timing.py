"""Distributions, taking turns, the share of nodes, and what is said about the figures."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_face import write_toy

from tokcarve.exporters.device.machine import Machine
from tokcarve.exporters.device.session import open_face
from tokcarve.exporters.device.timing import Distribution, distribution, node_share, time_in_turn
from tokcarve.exporters.device.verdict import Stage, decode_share, verdict, warnings

MACHINE = Machine(
    cpu="a", cores=4, load=0.5, threads=None, provider="CPU", fell_back=False, onnxruntime="1", dtype="float32"
)  # fmt: skip


def steady(milliseconds: float) -> Distribution:
    value = float(milliseconds)
    return Distribution(p50=value, p95=value, mean=value, least=value)


def stage(pruned: float, unpruned: float, predicted: float | None = None) -> Stage:
    return Stage(pruned=steady(pruned), unpruned=steady(unpruned), predicted=predicted)


STAGES = {
    "encoder": stage(10, 12, 1.5),
    "embedding": stage(1, 1),
    "prefill": stage(50, 120, 2.9),
    "decode": stage(20, 20, 1.05),
    "first_token": stage(61, 133),
    "end_to_end": stage(61 + 63 * 20, 133 + 63 * 20),
}


def test_distribution_by_hand() -> None:
    assert distribution([5.0]) == steady(5)
    assert distribution([4.0, 1.0, 3.0, 2.0]) == Distribution(p50=3.0, p95=4.0, mean=2.5, least=1.0)
    hundred = distribution([float(value) for value in range(100, 0, -1)])
    assert (hundred.p50, hundred.p95, hundred.least) == (51, 95, 1)


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


def test_verdict_says_what_pruning_cannot_reach() -> None:
    assert decode_share(STAGES, 64) == pytest.approx(1260 / 1321)
    assert verdict(STAGES, 64) == (
        "prefill 2.4x of a possible 2.9x; time to first token 2.2x; end to end 1.1x for 64 new tokens, "
        "because 95% of that is decode"
    )


def test_verdict_does_not_blame_decode_for_short_answers() -> None:
    short = {**STAGES, "end_to_end": stage(61 + 20, 133 + 20)}
    assert verdict(short, 2).endswith("end to end 1.9x for 2 new tokens, 25% of it decode")
    assert verdict({**STAGES, "end_to_end": STAGES["first_token"]}, 1).endswith("end to end 2.2x for 1 new token")


def test_slower_stages_are_warned_about_and_noise_is_not() -> None:
    assert warnings(STAGES, MACHINE) == ()
    slow = warnings({**STAGES, "encoder": stage(12, 10), "decode": stage(20.4, 20)}, MACHINE)
    assert slow == ("encoder is slower than unpruned: 12.00 against 10.00 ms (0.83x)",)
    lucky = replace(stage(12, 10), pruned=Distribution(p50=12.0, p95=12.0, mean=12.0, least=9.0))
    assert warnings({**STAGES, "encoder": lucky}, MACHINE) == ()


def test_a_gpu_that_did_not_start_is_mentioned() -> None:
    (said,) = warnings(STAGES, replace(MACHINE, fell_back=True))
    assert "could not start CUDA, so this ran on the CPU" in said


def test_a_busy_machine_is_mentioned() -> None:
    (said,) = warnings(STAGES, replace(MACHINE, load=3.0))
    assert said.startswith("the machine was busy before measuring (load 3.0 on 4 cores)")


def test_realised_is_the_measured_share_of_the_predicted_gain() -> None:
    record = STAGES["prefill"].record()
    assert record["speedup"] == pytest.approx(2.4) and record["realised"] == pytest.approx(2.4 / 2.9)
    assert STAGES["embedding"].record()["realised"] is None
