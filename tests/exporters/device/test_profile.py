"""A whole profile of a toy face: what is in it, and that it adds up."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from toy_face import TOTAL, edit_record, write_toy

from tokcarve.exporters.device.memory import measure_memory
from tokcarve.exporters.device.profile import Profile, profile, rounds
from tokcarve.passes.errors import ArtifactError, ExportError


@dataclass(frozen=True)
class Stage:
    site: str
    keep: int
    how: str = "choose"
    neurons: int | None = None


SCHEDULE = (Stage("vision.layers.0", 4), Stage("language.layers.0", 2))


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[Profile, list[str]]:
    directory = tmp_path_factory.mktemp("toy")
    write_toy(directory, batch=2)
    ticks: list[str] = []
    return profile(directory, SCHEDULE, repeats=3, warm_up=1, max_new=5, tick=ticks.append), ticks


def test_every_stage_of_both_sides_is_measured(measured: tuple[Profile, list[str]]) -> None:
    made, ticks = measured
    assert set(made.stages) == {"encoder", "embedding", "prefill", "decode", "first_token", "end_to_end"}
    for stage in made.stages.values():
        for side in (stage.pruned, stage.unpruned):
            assert 0 < side.least <= side.p50 <= side.p95
    assert len(ticks) == rounds(3, 1) and set(ticks) == {"memory", "vision", "embedding", "prefill", "decode"}


def test_an_answer_is_its_first_token_and_its_steps(measured: tuple[Profile, list[str]]) -> None:
    stages = measured[0].stages
    for side in ("pruned", "unpruned"):
        whole, first, step = (getattr(stages[name], side) for name in ("end_to_end", "first_token", "decode"))
        assert whole.p50 == pytest.approx(first.p50 + 4 * step.p50)


def test_predictions_follow_the_exported_rows(measured: tuple[Profile, list[str]]) -> None:
    made = measured[0]
    pruned, full = made.flops
    # layer 1 of the toy's tower sees 1 + 4 rows of 1 + 16, its language layers 28 and 26 rows of 40
    assert full.encoder - pruned.encoder == 2 * (12 * (4 * 8 * 8 + 2 * 8 * 16) + 2 * (17**2 - 5**2) * 8)
    assert made.stages["encoder"].predicted == pytest.approx(full.vision / pruned.vision)
    assert made.stages["prefill"].predicted == pytest.approx(full.prefill / pruned.prefill)
    assert made.prefill_conventions[0]["all"] == pruned.prefill


def test_sizes_are_those_of_the_export(measured: tuple[Profile, list[str]]) -> None:
    made = measured[0]
    row = 2 * 2 * 4 * 4  # keys and values, heads, channels, bytes
    assert made.kv_mib[0] * 2**20 == pytest.approx(2 * row * (28 + 26 + 2 * 12))
    assert made.kv_mib[1] * 2**20 == pytest.approx(2 * row * (40 + 40 + 2 * 12))
    for memory in made.memory:
        assert 20 < memory.start_mib < memory.peak_mib < 1000


def test_the_selector_is_a_part_of_the_encoder(measured: tuple[Profile, list[str]]) -> None:
    made = measured[0]
    assert 0 < made.selector_shares["vision"] < 1
    assert made.selector_ms == pytest.approx(
        made.selector_shares["vision"] * made.stages["encoder"].pruned.p50
        + made.selector_shares["prefill"] * made.stages["prefill"].pruned.p50
    )


def test_the_record_is_json_of_the_documented_shape(measured: tuple[Profile, list[str]]) -> None:
    record = json.loads(json.dumps(measured[0].record(), allow_nan=False))
    assert list(record) == [
        "format", "artifact", "batch", "max_text", "max_new", "warm_up", "repeats", "tokens", "tokens_mean",
        "machine", "stages",
        "selector", "memory", "flops", "verdict", "warnings",
    ]  # fmt: skip
    assert record["tokens"] == {"pruned": 4, "unpruned": TOTAL}
    assert set(record["stages"]["prefill"]) == {"pruned", "unpruned", "speedup", "predicted", "realised"}
    assert set(record["stages"]["prefill"]["pruned"]) == {"p50_ms", "p95_ms", "mean_ms", "min_ms"}
    assert set(record["memory"]) == {"peak_mib", "start_mib", "kv_mib"}
    assert set(record["flops"]["conventions"]) == {"all", "macs", "fastv"}
    assert record["machine"]["provider"] == "CPU"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new": 0}, r"max_new=0 does not fit this export; choose 1\.\.12"),
        ({"max_new": 13}, r"max_new=13 does not fit this export; choose 1\.\.12"),
        ({"repeats": 0}, "repeats=0 with warm-up 3 measures nothing"),
        ({"warm_up": -1}, "warm-up -1 measures nothing"),
        ({"threads": 0}, "threads=0 is no thread count"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, options: dict[str, int], message: str) -> None:
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
