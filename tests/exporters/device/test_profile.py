"""A whole profile of a toy face: what is in it, and that it adds up."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from toy_face import TOTAL, edit_record, write_toy

from tokcarve.exporters.device.bench import Bench
from tokcarve.exporters.device.memory import measure_memory
from tokcarve.exporters.device.profile import Profile, profile
from tokcarve.exporters.device.rounds import Effort
from tokcarve.exporters.device.session import open_face
from tokcarve.passes.errors import ArtifactError, ExportError


@dataclass(frozen=True)
class Stage:
    site: str
    keep: int
    how: str = "choose"
    neurons: int | None = None


SCHEDULE = (Stage("vision.layers.0", 4), Stage("language.layers.0", 2))


Ticks = list[tuple[str, int, int]]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Profile, Ticks]:
    directory = tmp_path_factory.mktemp("toy")
    write_toy(directory, batch=2)
    ticks: Ticks = []
    made = profile(
        directory,
        SCHEDULE,
        effort=Effort(repeats=12, warm_up=1),
        answers=(2, 5),
        tick=lambda *what: ticks.append(what),
    )
    return made, ticks


def test_every_stage_of_both_sides_is_measured(measured: tuple[Profile, Ticks]) -> None:
    made, ticks = measured
    assert list(made.stages) == ["encoder", "embedding", "prefill", "cache", "decode", "first_token", "end_to_end"]
    for stage in made.stages.values():
        assert stage.rounds == 12
        for side in (stage.pruned, stage.unpruned):
            assert 0 < side.least <= side.p50 <= side.p95
    assert made.together and len(ticks) == 2 + 2 + 13
    assert {what for what, _, _ in ticks} == {"memory", "machine", "stages and answers"} and ticks[-1][1:] == (13, 13)


def test_answers_run_through_all_stages(measured: tuple[Profile, Ticks]) -> None:
    made = measured[0]
    two, five = made.answers
    assert (two.new, five.new, made.max_new) == (2, 5, 5)
    for side in ("pruned", "unpruned"):
        first, whole = (getattr(made.stages[name], side) for name in ("first_token", "end_to_end"))
        assert first.p50 < getattr(two, side).p50 < getattr(five, side).p50 == whole.p50
    parts = {name: 1 for name in ("encoder", "embedding", "prefill", "cache")} | {"decode": 4}
    sums = [
        sum(times * getattr(made.stages[name], side).p50 for name, times in parts.items())
        for side in ("pruned", "unpruned")
    ]
    assert five.predicted == pytest.approx(sums[1] / sums[0])
    assert all(side.p50 > 0 for one in (two, five) for side in one.sums)


def test_of_a_given_number_of_rounds_no_width_is_asked(measured: tuple[Profile, Ticks]) -> None:
    assert measured[0].loose == ()


def test_where_memory_is_short_stages_are_loaded_one_after_the_other(tmp_path: Path) -> None:
    write_toy(tmp_path)
    loaded: list[int] = []
    bench = Bench(
        open_face(tmp_path, threads=1),
        effort=Effort(repeats=5, warm_up=1),
        answers=(1, 3),
        together=False,
    )
    bench.run(lambda *_: loaded.append(max(len(side.pipeline._graphs) for side in bench.sides)))
    assert bench.rounds == {
        **dict.fromkeys(("encoder", "embedding", "prefill", "cache", "decode"), 5), "answer.1": 3, "answer.3": 3
    }  # fmt: skip
    assert max(loaded[:-3]) == 1 and loaded[-3:] == [4, 4, 4]
    assert not any(side.pipeline._graphs for side in bench.sides)
    assert all(len(times) == 3 for times in bench.samples["answer.3"]) and bench.shares["vision"] > 0


def test_predictions_follow_the_exported_rows(measured: tuple[Profile, Ticks]) -> None:
    made = measured[0]
    pruned, full = made.flops
    # layer 1 of the toy's tower sees 1 + 4 rows of 1 + 16, its language layers 28 and 26 rows of 40
    assert full.encoder - pruned.encoder == 2 * (12 * (4 * 8 * 8 + 2 * 8 * 16) + 2 * (17**2 - 5**2) * 8)
    assert made.stages["encoder"].predicted == pytest.approx(full.vision / pruned.vision)
    assert made.stages["prefill"].predicted == pytest.approx(full.prefill / pruned.prefill)
    assert made.prefill_conventions[0]["all"] == pruned.prefill


def test_sizes_are_those_of_the_export(measured: tuple[Profile, Ticks]) -> None:
    made = measured[0]
    row = 2 * 2 * 4 * 4  # keys and values, heads, channels, bytes
    assert made.kv_mib[0] * 2**20 == pytest.approx(2 * row * (28 + 26 + 2 * 12))
    assert made.kv_mib[1] * 2**20 == pytest.approx(2 * row * (40 + 40 + 2 * 12))
    for memory in made.memory:
        assert 20 < memory.start_mib < memory.peak_mib < 1000


def test_the_selector_is_a_part_of_the_encoder(measured: tuple[Profile, Ticks]) -> None:
    made = measured[0]
    assert 0 < made.selector_shares["vision"] < 1
    assert made.selector_ms == pytest.approx(
        made.selector_shares["vision"] * made.stages["encoder"].pruned.p50
        + made.selector_shares["prefill"] * made.stages["prefill"].pruned.p50
    )


def test_the_record_is_json_of_the_documented_shape(measured: tuple[Profile, Ticks]) -> None:
    record = json.loads(json.dumps(measured[0].record(), allow_nan=False))
    assert list(record) == [
        "format", "artifact", "made_of", "batch", "max_text", "max_new", "warm_up", "repeats", "tolerance", "together",
        "tokens", "tokens_mean", "machine", "balance", "clocks", "stages", "answers", "break_even", "selector",
        "memory", "flops", "verdict", "reasons", "warnings",
    ]  # fmt: skip
    assert record["tokens"] == {"pruned": 4, "unpruned": TOTAL}
    stage = record["stages"]["prefill"]
    assert set(stage) == {
        "pruned", "unpruned", "speedup", "speedup_interval", "predicted", "realised", "rounds", "tight"
    }  # fmt: skip
    assert set(stage["pruned"]) == {"p50_ms", "p95_ms", "mean_ms", "min_ms", "interval_ms"}
    assert set(record["answers"][0]) == {
        "new_tokens", "pruned", "unpruned", "speedup", "speedup_interval", "predicted", "whole_over_parts", "adds_up"
    }  # fmt: skip
    assert set(record["memory"]) == {"peak_mib", "start_mib", "device_mib", "kv_mib"}
    assert set(record["break_even"]) == {"speedup", "shortest", "longest"}
    assert {"source", "unread", "cpu_percent"} <= set(record["clocks"])
    assert set(record["balance"]) == {"gflops_per_second", "gib_per_second", "flops_per_byte"}
    assert set(record["flops"]["conventions"]) == {"all", "macs", "fastv"}
    assert record["machine"]["provider"] == "CPU"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answers": (0,)}, r"0 new tokens do not fit this export; choose 1\.\.12"),
        ({"answers": (1, 13)}, r"13 new tokens do not fit this export; choose 1\.\.12"),
        ({"effort": Effort(repeats=0)}, "repeats=0 with warm-up 3 measures nothing"),
        ({"threads": 0}, "threads=0 is no thread count"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    write_toy(tmp_path)
    with pytest.raises(ExportError, match=message):
        profile(tmp_path, SCHEDULE, **options)


def test_a_process_that_fails_is_reported_with_its_last_words(tmp_path: Path) -> None:
    write_toy(tmp_path)
    edit_record(tmp_path, max_new=99)
    with pytest.raises(ExportError, match="did not run in a process of their own .*does not match its digest"):
        measure_memory(tmp_path, baseline=True, threads=None)
    with pytest.raises(ArtifactError, match="does not match its digest"):
        profile(tmp_path, SCHEDULE)
