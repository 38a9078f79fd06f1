"""Least times and sizes, worked by hand on a model that is small enough to count."""

from dataclasses import replace

import pytest

from tokcarve.exporters.device.boards import BOARDS
from tokcarve.exporters.device.speeds import MODULES, Module, modules_of
from tokcarve.exporters.engines import build_peak, engine_bytes, room, weight_bytes
from tokcarve.exporters.roofline import Times, least_times
from tokcarve.passes.flops import Rows, count_flops, kv_bytes, rows_of, weight_parameters, whole_model
from tokcarve.passes.geometry import Geometry, TextGeometry, VisionGeometry
from tokcarve.passes.known import KNOWN

SMALL = Geometry(
    vision=VisionGeometry(
        kind="clip", image_size=4, patch_size=2, grid=(2, 2), hidden=6, heads=2, head_dim=3, mlp=10,
        layers=3, layers_used=2, prefix=1,
    ),
    text=TextGeometry(
        kind="qwen2", hidden=8, heads=4, kv_heads=2, head_dim=2, mlp=16, layers=2, vocab=20, max_positions=64,
        sliding_window=None,
    ),
    total=4, image_token_id=1, eos_token_ids=(2,), pad_token_id=0,
)  # fmt: skip
ROWS = rows_of(SMALL, (), text_rows=3)
FAST = Module(board="orin", memory=1, tflops=1.0, gbps=1e9)  # memory that never waits: FLOPs decide
WIDE = Module(board="orin", memory=1, tflops=1e9, gbps=1.0)  # cores that never wait: bytes decide


def times(module: Module, precision: str = "fp16", rows: Rows = ROWS, of_peak: float = 1.0) -> Times:
    return least_times(SMALL, rows, (10, 10), module, precision, of_peak=of_peak)


def test_where_memory_is_no_limit_flops_decide() -> None:
    flops, found = count_flops(SMALL, ROWS), times(FAST)
    # 1 TFLOPS is 1e9 FLOPs per millisecond
    assert found.encoder == pytest.approx(flops.vision / 1e9)
    assert found.prefill == pytest.approx(flops.prefill / 1e9)
    # a step: per layer 576 weights and two products with 11 rows of 8 numbers, and a head of 8 x 20
    assert found.decode == pytest.approx(2 * (2 * (576 + 2 * 11 * 8) + 8 * 20) / 1e9)


def test_where_cores_are_no_limit_bytes_decide() -> None:
    weights, found = weight_parameters(SMALL), times(WIDE)
    # 1 GB/s is 1e6 bytes per millisecond, and a weight in fp16 has 2
    assert found.encoder == pytest.approx(2 * (weights["encoder"] + weights["connector"]) / 1e6)
    assert found.prefill == pytest.approx(2 * (weights["language"] + weights["head"]) / 1e6)
    cache = kv_bytes(SMALL.text, (10, 10))
    assert cache == 2 * 10 * 2 * 2 * 2 * 2
    assert found.decode == pytest.approx((2 * (weights["language"] + weights["head"]) + cache) / 1e6)


def test_a_layer_waits_for_the_slower_of_the_two() -> None:
    # 2304 FLOPs are computed in the time in which the 1152 bytes of a layer are read, where rows are few
    text = replace(SMALL.text, layers=2)
    rows = replace(ROWS, text=(1, 7), text_only=1)
    module = Module(board="orin", memory=1, tflops=1.0, gbps=500.0)
    found = least_times(replace(SMALL, text=text), rows, (1, 1), module, "fp16")
    computed = [2 * (n * 576 + 2 * n * n * 8) / 1e9 for n in (1, 7)]
    read = 2 * 576 / 500e6
    assert computed[0] < read < computed[1]
    head = max(2 * 8 * 20 / 1e9, 2 * 8 * 20 / 500e6)
    assert found.prefill == pytest.approx(read + computed[1] + head)


def test_precisions_change_what_is_read_and_what_is_computed() -> None:
    assert times(WIDE, "fp32").prefill == pytest.approx(2 * times(WIDE).prefill)
    assert times(FAST, "fp32").prefill == pytest.approx(2 * times(FAST).prefill)
    assert times(FAST, "int4").prefill == times(FAST).prefill, "its weights are computed with in float16"
    assert times(WIDE, "int8").prefill < times(WIDE).prefill
    assert times(FAST, of_peak=0.5).decode == pytest.approx(2 * times(FAST).decode)


def test_answers_are_a_first_token_and_steps() -> None:
    one = Times(encoder=3.0, prefill=4.0, decode=2.0)
    assert (one.first_token, one.answer(1), one.answer(16)) == (7.0, 7.0, 37.0)
    assert one.record()["end_to_end"] == {"16": 37.0, "64": 133.0, "256": 517.0}


def test_weights_by_precision() -> None:
    llava = KNOWN["llava-1.5-7b"]
    sizes = {name: weight_bytes(llava, name) for name in ("fp32", "fp16", "int8", "int4")}
    layers = weight_parameters(llava)["language"]
    assert sizes["fp32"]["language"] == 4 * layers and sizes["fp16"]["language"] == 2 * layers
    # a float16 scale per column: q, k, v, o and down make 4096 of them, gate and up 11008
    assert sizes["int8"]["language"] == layers + 32 * 2 * (5 * 4096 + 2 * 11008)
    # blocks of 128 with a float16 scale each
    assert sizes["int4"]["language"] == pytest.approx(layers * (0.5 + 2 / 128))
    for part in ("encoder", "connector", "embedding", "head"):
        assert sizes["int4"][part] == sizes["int8"][part] == sizes["fp16"][part]


def test_a_matrix_without_whole_blocks_stays_float16() -> None:
    # of tiny's 128 x 344 layers: 4 x 128 x 128 and 2 x 128 x 344 in 4 bits with a scale per column, 344 x 128 in 16
    layer = 4 * (128 * 64 + 2 * 128) + 2 * (344 * 64 + 2 * 344) + 2 * 344 * 128
    assert weight_bytes(KNOWN["tiny"], "int4")["language"] == 6 * layer


def test_a_tied_head_is_held_once() -> None:
    qwen = KNOWN["llava-interleave-qwen-0.5b"]
    parts = weight_parameters(qwen)
    assert qwen.text.tied and parts["head"] == parts["embedding"] > 0
    assert whole_model(parts, qwen.text) == sum(parts.values()) - parts["embedding"]
    llava = KNOWN["llava-1.5-7b"]
    assert whole_model(weight_parameters(llava), llava.text) == sum(weight_parameters(llava).values())


def test_engines_have_copies_and_builders_hold_four() -> None:
    sizes = {"encoder": 1.0, "connector": 2.0, "language": 30.0, "head": 4.0, "embedding": 5.0}
    assert engine_bytes(sizes) == {"vision": 3.0, "embedding": 5.0, "prefill": 34.0, "decode": 34.0}
    assert build_peak(2**30) == 4.5
    found = room({part: size * 2**30 for part, size in sizes.items()}, SMALL.text, (10, 10), batch=3, element=2)
    assert found.largest == "prefill" and found.build["prefill"] == 4 * 34 + 0.5
    assert found.run == pytest.approx(3 + 5 + 34 + 34 + 3 * kv_bytes(SMALL.text, (10, 10)) / 2**30)
    assert found.need == 4 * 34 + 0.5


def test_modules_are_those_that_boards_are_sold_as() -> None:
    for board in BOARDS.values():
        assert tuple(module.memory for module in modules_of(board)) == board.memory
    assert modules_of(None) == MODULES
    peaks = {module.name: module.tflops for module in MODULES}
    assert peaks["orin 64 GiB"] == 170 / 4 and peaks["thor 128 GiB"] == 2070 / 8
    assert all(module.peak("float32") == module.peak("float16") / 2 for module in MODULES)
