"""Why a stage gains less than its FLOPs promise, and why an answer gains less than its prefill: from measured numbers.

Of the milliseconds that a pruned stage takes beyond unpruned / possible, these are told apart:

    selector      what choosing and merging tokens takes, as ONNX Runtime's profiler has it
    memory        FLOPs per byte of the stage below those of the machine (its balance), and reading at its best would
                  take half of the stage's time or more; were it more than all, processor caches would hold what is read
    overhead      what is left of the time at no FLOPs, on the line through both sides' (FLOPs, milliseconds), as far as
                  it explains what is lost; only told where the sides are far enough apart for a line
    efficiency    the rest: fewer FLOPs per second, because the matrices are smaller
"""

from collections.abc import Mapping
from dataclasses import dataclass

from tokcarve.exporters.device.balance import Balance
from tokcarve.exporters.device.verdict import Stage
from tokcarve.exporters.device.work import Work

__all__ = ["Loss", "loss", "reasons"]

_REACHED, _WORTH, _MOSTLY, _FAR = 0.9, 0.2, 0.5, 1.5
"""A gain that is this share of what is possible needs no reason; a cause is named from this share of what is lost; a
share of an answer that explains it; FLOPs of the sides so many times apart give a line."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Milliseconds that a pruned stage takes beyond what its FLOPs promise, and what explains them; `floor` is the
    least that reading takes where memory bounds the stage, else 0."""

    lost: float
    selector: float
    overhead: float
    floor: float


def loss(stage: Stage, pruned: Work, unpruned: Work, selector_share: float, balance: Balance | None) -> Loss | None:
    """What `stage` loses; None where it comes near to what is possible, or may do so within its interval."""
    if stage.predicted is None or stage.realised is None:
        return None
    interval = stage.ratio.interval
    if (stage.speedup if interval is None else interval.high) >= _REACHED * stage.predicted:
        return None
    spent, fixed = stage.pruned.p50, 0.0
    lost, selector = spent * (1 - stage.realised), selector_share * spent
    if stage.predicted >= _FAR:
        slope = spent * (stage.speedup - 1) / (unpruned.flops - pruned.flops)
        fixed = spent - slope * pruned.flops - selector
    return Loss(
        lost=lost,
        selector=selector,
        overhead=max(min(fixed, lost - selector), 0.0),
        floor=_floor(stage, pruned, balance),
    )


def _floor(stage: Stage, work: Work, balance: Balance | None) -> float:
    """Milliseconds that reading takes at least where that bounds the pruned stage, else 0."""
    if balance is None or work.flops_per_byte >= balance.flops_per_byte:
        return 0.0
    least = work.bytes / balance.bytes * 1000
    return least if _MOSTLY * stage.pruned.p50 <= least <= stage.pruned.p50 else 0.0


def reasons(
    stages: Mapping[str, Stage],
    works: tuple[Mapping[str, Work], Mapping[str, Work]],
    selector_shares: Mapping[str, float],
    balance: Balance | None,
    decode_share: float,
) -> tuple[str, ...]:
    """A sentence per stage that loses; `works` are (pruned, unpruned), shares are those of the stage's time."""
    said = []
    for name in ("encoder", "prefill"):
        pruned, unpruned = (side[name] for side in works)
        found = loss(stages[name], pruned, unpruned, selector_shares[name], balance)
        if found is not None:
            said.append(_sentence(name, stages[name], found, pruned, unpruned, balance))
    if decode_share >= _MOSTLY:
        said.append(_decode(stages["decode"], works[0]["decode"], balance, decode_share))
    return tuple(said)


def _sentence(name: str, stage: Stage, found: Loss, pruned: Work, unpruned: Work, balance: Balance | None) -> str:
    causes = []
    if found.selector >= _WORTH * found.lost:
        causes.append(f"choosing tokens takes {found.selector:.2f} ms (selector cost)")
    if found.floor and balance is not None:
        causes.append(
            f"reading {pruned.bytes / 2**20:.0f} MiB takes this machine {found.floor:.2f} ms or more, however few rows "
            f"there are (memory-bound: {pruned.flops_per_byte:.1f} FLOPs per byte, and its balance is "
            f"{balance.flops_per_byte:.1f})"
        )
    elif found.overhead >= _WORTH * found.lost:
        causes.append(f"about {found.overhead:.2f} ms of each run do not depend on what is computed (overhead)")
    if not causes:
        speeds = [work.flops / side.p50 / 1e6 for work, side in ((pruned, stage.pruned), (unpruned, stage.unpruned))]
        causes.append(f"smaller matrices compute at {speeds[0]:.1f} instead of {speeds[1]:.1f} GFLOP/s")
    return (
        f"{name} gains {stage.speedup:.2f}x of a possible {stage.predicted:.2f}x, {found.lost:.2f} ms short: "
        f"{', and '.join(causes)}"
    )


def _decode(stage: Stage, work: Work, balance: Balance | None, share: float) -> str:
    said = (
        f"{share:.0%} of an answer is decode, which gains {stage.speedup:.2f}x: a step computes one row and reads "
        f"{work.weight_bytes / 2**20:.1f} MiB of weights, whatever number of visual tokens is kept, and "
        f"{work.cache_bytes / 2**20:.1f} MiB of caches"
    )
    floor = _floor(stage, work, balance)
    if not floor or balance is None:
        return said
    return (
        f"{said}, which takes this machine {floor:.2f} ms or more (memory-bound: {work.flops_per_byte:.1f} FLOPs per "
        f"byte, and its balance is {balance.flops_per_byte:.1f})"
    )
