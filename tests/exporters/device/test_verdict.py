"""What is said about the figures: the verdict, the reasons for what was lost, and warnings; all by hand."""

from dataclasses import replace

import pytest

from tokcarve.exporters.device.answers import Answer, BreakEven
from tokcarve.exporters.device.balance import Balance
from tokcarve.exporters.device.intervals import Interval
from tokcarve.exporters.device.machine import Machine
from tokcarve.exporters.device.reasons import loss, reasons
from tokcarve.exporters.device.timing import Distribution
from tokcarve.exporters.device.verdict import Stage, verdict, warnings
from tokcarve.exporters.device.work import Work

MACHINE = Machine(
    cpu="a", cores=4, load=0.5, threads=None, provider="CPU", fell_back=False, onnxruntime="1", dtype="float32"
)  # fmt: skip
PAYS = BreakEven(shortest=1, longest=36)


def steady(value: float) -> Distribution:
    value = float(value)
    return Distribution(p50=value, p95=value, mean=value, least=value, interval=Interval(low=value, high=value))


def stage(pruned: float, unpruned: float, predicted: float | None = None) -> Stage:
    ratio = steady(unpruned / pruned)
    return Stage(pruned=steady(pruned), unpruned=steady(unpruned), ratio=ratio, predicted=predicted)


def answer(new: int, pruned: float, unpruned: float) -> Answer:
    """An answer that takes so many times what its stages take."""
    return Answer(
        new=new, pruned=steady(1), unpruned=steady(1), ratio=steady(1), predicted=1.0,
        sums=(steady(pruned), steady(unpruned)),
    )  # fmt: skip


def work(flops: int, read: int) -> Work:
    return Work(flops=flops, weight_bytes=read, cache_bytes=0)


STAGES = {
    "encoder": stage(10, 12, 1.25),
    "embedding": stage(1, 1),
    "prefill": stage(50, 120, 2.9),
    "decode": stage(20, 20, 1.05),
    "first_token": stage(61, 133),
    "end_to_end": stage(61 + 63 * 20, 133 + 63 * 20),
}
FAST = Balance(flops=1e12, bytes=1e12)


def test_verdict_says_what_pruning_cannot_reach() -> None:
    assert verdict(STAGES, 64, 0.954, PAYS) == (
        "prefill 2.4x of a possible 2.9x; time to first token 2.2x; end to end 1.05x for 64 new tokens "
        "because 95% of that is decode; break-even (1.1x) below 37 new tokens"
    )


def test_verdict_does_not_blame_decode_for_short_answers() -> None:
    short = {**STAGES, "end_to_end": stage(61 + 20, 133 + 20)}
    assert "end to end 1.89x for 2 new tokens, 25% of it decode; " in verdict(short, 2, 0.25, PAYS)
    one = verdict({**STAGES, "end_to_end": STAGES["first_token"]}, 1, 0.0, PAYS)
    assert "end to end 2.18x for 1 new token; " in one


def test_slower_stages_are_warned_about_and_noise_is_not() -> None:
    good = [answer(1, 1.0, 1.04)]
    assert warnings(STAGES, good, MACHINE, (), together=True) == ()
    slow = warnings({**STAGES, "encoder": stage(12, 10), "decode": stage(20.4, 20)}, good, MACHINE, (), together=True)
    assert slow == ("encoder is slower than unpruned: 12.00 against 10.00 ms (0.83x)",)
    lucky = replace(stage(12, 10), pruned=replace(steady(12), least=9.0))
    assert warnings({**STAGES, "encoder": lucky}, good, MACHINE, (), together=True) == ()


def test_answers_that_do_not_add_up_are_warned_about_once() -> None:
    (said,) = warnings(STAGES, [answer(1, 1.0, 1.06), answer(16, 0.9, 1.0)], MACHINE, (), together=True)
    assert said.startswith("pruned answers of 16 new tokens take 0.90 times what their stages take alone (more than 5%")


def test_wide_intervals_are_named() -> None:
    (said,) = warnings(STAGES, [answer(1, 1.0, 1.0)], MACHINE, ("prefill", "decode"), together=True)
    assert said.startswith("the intervals of prefill, decode are still wider than asked")
    assert STAGES["prefill"].tight(0.03)
    wide = replace(STAGES["prefill"], ratio=replace(steady(2.4), interval=Interval(low=2.2, high=2.6)))
    unknown = replace(STAGES["prefill"], pruned=replace(steady(50), interval=None))
    assert not wide.tight(0.03) and not unknown.tight(0.03) and wide.tight(0.09)


def test_a_gpu_that_did_not_start_is_mentioned() -> None:
    (said,) = warnings(STAGES, [answer(1, 1.0, 1.0)], replace(MACHINE, fell_back=True), (), together=True)
    assert "could not start CUDA, so this ran on the CPU" in said


def test_a_busy_machine_is_mentioned() -> None:
    (said,) = warnings(STAGES, [answer(1, 1.0, 1.0)], replace(MACHINE, load=3.0), (), together=True)
    assert said.startswith("the machine was busy before measuring (load 3.0 on 4 cores)")


def test_realised_is_the_measured_share_of_the_predicted_gain() -> None:
    record = STAGES["prefill"].record(0.03)
    assert record["speedup"] == pytest.approx(2.4) and record["realised"] == pytest.approx(2.4 / 2.9)
    assert STAGES["embedding"].record(0.03)["realised"] is None


def test_what_is_lost_by_hand() -> None:
    # 50 ms where 120 / 3 = 40 were possible: 10 are lost, 4 of them choosing
    found = loss(stage(50, 120, 3.0), work(100, 1), work(300, 1), 0.08, FAST)
    assert found is not None
    assert found.lost == pytest.approx(10) and found.selector == pytest.approx(4) and found.floor == 0
    # the line through (100, 50) and (300, 120) is at 15 for no FLOPs, 11 without choosing; no more than is lost is told
    assert found.overhead == pytest.approx(6)
    assert loss(stage(41, 120, 3.0), work(100, 1), work(300, 1), 0.08, FAST) is None
    assert loss(stage(50, 120), work(100, 1), work(300, 1), 0.08, FAST) is None
    unsure = replace(stage(50, 120, 3.0), ratio=replace(steady(2.4), interval=Interval(low=2.0, high=2.8)))
    assert loss(unsure, work(100, 1), work(300, 1), 0.08, FAST) is None
    near = loss(stage(100, 110, 1.3), work(100, 1), work(130, 1), 0.0, FAST)
    assert near is not None and near.overhead == 0


def test_reading_bounds_a_stage_whose_flops_per_byte_are_few() -> None:
    machine = Balance(flops=1e9, bytes=1e8)  # 10 FLOPs per byte

    def floor(flops: int, read: int) -> float:
        found = loss(stage(50, 60, 3.0), work(flops, read), work(3 * flops, read), 0.0, machine)
        assert found is not None
        return found.floor

    assert floor(6_000_000, 3_000_000) == pytest.approx(30)  # of 50 ms, 2 FLOPs per byte
    assert floor(60_000_000, 3_000_000) == 0  # 20 FLOPs per byte
    assert floor(2_000_000, 1_000_000) == 0  # 10 of 50 ms
    assert floor(12_000_000, 6_000_000) == 0  # 60 of 50 ms: it did not come from memory


def said(prefill: Stage, pruned: Work, unpruned: Work, choosing: float, balance: Balance | None) -> str:
    stages = {**STAGES, "prefill": prefill}
    works = ({"encoder": work(10, 1), "prefill": pruned}, {"encoder": work(12, 1), "prefill": unpruned})
    (one,) = reasons(stages, works, {"encoder": 0.0, "prefill": choosing}, balance, 0.2)
    return one


def test_every_cause_has_its_words() -> None:
    lost = "prefill gains 2.40x of a possible 3.00x, 10.00 ms short: "
    few, many = work(10**11, 2 * 2**20), work(3 * 10**11, 2 * 2**20)
    assert said(stage(50, 120, 3.0), few, many, 0.2, None) == f"{lost}choosing tokens takes 10.00 ms (selector cost)"
    overhead = "about 10.00 ms of each run do not depend on what is computed (overhead)"
    assert said(stage(50, 120, 3.0), few, many, 0.0, None) == lost + overhead
    reading = said(stage(50, 120, 3.0), few, many, 0.0, Balance(flops=1e13, bytes=5e7))
    assert "reading 2 MiB takes this machine 41.94 ms or more" in reading and "memory-bound" in reading
    near = said(stage(100, 110, 1.4), work(10**9, 1), work(14 * 10**8, 1), 0.0, None)
    assert near.endswith("smaller matrices compute at 10.0 instead of 12.7 GFLOP/s")


def test_an_answer_that_is_mostly_decode_is_explained() -> None:
    stages = {**STAGES, "prefill": stage(41, 120, 3.0)}
    works = ({"encoder": work(10, 1), "prefill": work(100, 1), "decode": work(2 * 2**20, 4 * 2**20)},
             {"encoder": work(12, 1), "prefill": work(300, 1)})  # fmt: skip
    shares = {"encoder": 0.0, "prefill": 0.0}
    assert reasons(stages, works, shares, FAST, 0.4) == ()
    (plain,) = reasons(stages, works, shares, FAST, 0.9)
    assert plain == (
        "90% of an answer is decode, which gains 1.00x: a step computes one row and reads 4.0 MiB of weights, whatever "
        "number of visual tokens is kept, and 0.0 MiB of caches"
    )
    (bound,) = reasons(stages, works, shares, Balance(flops=1e9, bytes=3e8), 0.9)
    assert bound == (
        f"{plain}, which takes this machine 13.98 ms or more (memory-bound: 0.5 FLOPs per byte, and its balance is 3.3)"
    )
