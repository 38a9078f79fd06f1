"""The cost arithmetic against a model small enough to count by hand and against published figures."""

from dataclasses import dataclass

import pytest

from tokcarve.passes.flops import Rows, conventions, count_flops, decode_flops, kv_bytes, rows_of, weight_parameters
from tokcarve.passes.geometry import Geometry, TextGeometry, VisionGeometry

LLAVA_7B = Geometry(
    vision=VisionGeometry(
        kind="clip", image_size=336, patch_size=14, grid=(24, 24), hidden=1024, heads=16, head_dim=64, mlp=4096,
        layers=24, layers_used=23, prefix=1,
    ),
    text=TextGeometry(
        kind="llama", hidden=4096, heads=32, kv_heads=32, head_dim=128, mlp=11008, layers=32, vocab=32064,
        max_positions=4096, sliding_window=None,
    ),
    total=576, image_token_id=32000, eos_token_ids=(2,), pad_token_id=32001,
)  # fmt: skip
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


@dataclass(frozen=True)
class Stage:
    site: str
    keep: int
    how: str = "choose"
    neurons: int | None = None


def test_small_model_by_hand() -> None:
    rows = rows_of(SMALL, [Stage("vision.layers.0", 2)], text_rows=3)
    assert rows == Rows(vision=(5, 3), feed=(5, 3), connector=2, text=(5, 5), text_only=3)
    flops = count_flops(SMALL, rows)
    # A vision layer has 4 * 6 * 6 + 2 * 6 * 10 = 264 weights; attention is 2 * rows^2 * 6.
    patches = 4 * 12 * 6
    assert flops.encoder == 2 * (patches + 5 * 264 + 2 * 25 * 6 + 3 * 264 + 2 * 9 * 6)
    assert flops.connector == 2 * 2 * (6 * 8 + 8 * 8)
    # A text layer: q 8*8, k and v 8*4 each, o 8*8, MLP 3*8*16 = 576 weights; attention is 2 * rows^2 * 8.
    assert flops.prefill == 2 * (2 * (5 * 576 + 2 * 25 * 8) + 8 * 20)
    assert flops.decode == 2 * (2 * (576 + 2 * 6 * 8) + 8 * 20)
    assert flops.vision == flops.encoder + flops.connector


def test_batch_multiplies_everything() -> None:
    rows = rows_of(SMALL, [], text_rows=3)
    one, four = count_flops(SMALL, rows), count_flops(SMALL, rows, batch=4)
    assert (four.encoder, four.prefill, four.decode) == (4 * one.encoder, 4 * one.prefill, 4 * one.decode)


def test_rows_follow_the_schedule_through_all_sites() -> None:
    schedule = [Stage("vision.layers.1", 3, "mask"), Stage("connector", 2), Stage("language.layers.0", 1, "merge")]
    rows = rows_of(SMALL, schedule, text_rows=10)
    assert rows == Rows(vision=(5, 5), feed=(5, 5), connector=4, text=(12, 11), text_only=10)


def test_static_flowcut_makes_the_tower_cheaper_layer_by_layer() -> None:
    schedule = [Stage("vision.layers.11", 300), Stage("vision.layers.22", 64)]
    rows = rows_of(LLAVA_7B, schedule, text_rows=64)
    assert rows.vision == (577,) * 12 + (301,) * 11
    assert rows.connector == 64 and set(rows.text) == {128}
    assert count_flops(LLAVA_7B, rows).encoder < count_flops(LLAVA_7B, rows_of(LLAVA_7B, [], 64)).encoder


def test_published_prefill_figures_of_llava_7b() -> None:
    named = conventions(LLAVA_7B, rows_of(LLAVA_7B, [], text_rows=64))
    assert named["fastv"] == pytest.approx(2.99e12, rel=2e-3)
    assert named["macs"] == pytest.approx(3.817e12, rel=1e-3)
    assert named["all"] == pytest.approx(8.5e12, rel=1e-3)


def test_published_kv_figures_of_llava_7b() -> None:
    assert kv_bytes(LLAVA_7B.text, [1] * 32) == 512 * 2**10
    assert kv_bytes(LLAVA_7B.text, [576] * 32) == 288 * 2**20
    assert kv_bytes(LLAVA_7B.text, [64] * 32) == 32 * 2**20


def test_weights_of_llava_7b() -> None:
    parts = weight_parameters(LLAVA_7B)
    assert parts["language"] + parts["head"] + parts["embedding"] == pytest.approx(6.74e9, rel=1e-3)
    assert parts["encoder"] == pytest.approx(0.291e9, rel=1e-2)
    assert parts["connector"] == 1024 * 4096 + 4096 * 4096


def test_a_decode_step_reads_weights_once_and_the_cache_in_proportion() -> None:
    near, far = decode_flops(LLAVA_7B.text, [100] * 32), decode_flops(LLAVA_7B.text, [200] * 32)
    assert far - near == 2 * 32 * 2 * 100 * 4096
