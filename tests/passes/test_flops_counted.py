"""The cost arithmetic of cuts inside the tower: by hand, and against what torch counts while the graph runs."""

from dataclasses import replace

import pytest
import torch
from models import TOTAL, Tower, build, pictures
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tokcarve.passes import families
from tokcarve.passes.flops import count_flops, rows_of
from tokcarve.passes.insert import StageRecord, rewrite
from tokcarve.passes.methods.downsample import Downsample
from tokcarve.passes.stage import Carry, Outcome, Signals, Stage

TOWERS: list[Tower] = ["clip", "siglip"]
LAST = "vision.layers.4"


def strongest(signals: Signals, carry: Carry) -> Outcome:
    """Tokens by their norm: a rule without a matrix product."""
    return {"score": signals["tokens"].norm(dim=-1)}


def cut(site: str, keep: int) -> Stage:
    return Stage(site=site, reads=("tokens",), rule=strongest, how="choose", keep=keep)


def test_cuts_inside_a_layer_and_before_the_tower_by_hand() -> None:
    geometry = families.capture(build()).geometry
    pixels = StageRecord(site="pixels", total=TOTAL, keep=16, how="resize")
    inside = StageRecord(site="vision.layers.0.attention", total=16, keep=10, how="merge")
    rows = rows_of(geometry, [pixels, inside], text_rows=7)
    assert rows.vision == (17, 11, 11, 11, 11) and rows.feed == (11, 11, 11, 11, 11)
    assert (rows.connector, rows.text, rows.text_only) == (10, (17, 17, 17), 7)
    # width 32, MLP 64: four projections, two attention products, two MLP matrices
    first = 17 * 4 * 32 * 32 + 2 * 17 * 17 * 32 + 11 * 2 * 32 * 64
    later = 11 * 4 * 32 * 32 + 2 * 11 * 11 * 32 + 11 * 2 * 32 * 64
    flops = count_flops(geometry, rows)
    assert flops.encoder == 2 * (16 * 3 * 14 * 14 * 32 + first + 4 * later)
    assert flops.connector == 2 * 10 * (32 * 48 + 48 * 48)
    late = rows_of(geometry, [replace(inside, site="vision.layers.0", total=64)], text_rows=7)
    assert late.vision == (65, 11, 11, 11, 11) and late.feed == (65, 11, 11, 11, 11)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("sites", [[], ["vision.layers.0.attention"], ["vision.layers.1.attention", LAST], ["p"]])
def test_the_arithmetic_is_what_torch_counts(tower: Tower, sites: list[str]) -> None:
    graphs = families.capture(build("llama", tower))
    stages = [cut(site, 20 - 5 * i) for i, site in enumerate(sites)]
    result = rewrite(graphs, Downsample().stages(graphs.geometry, 16, None) if sites == ["p"] else stages)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counted:
        result.graphs.vision(pictures(2))
    shrinking = 2 * 2 * 3 * (56 * 112 * 112 + 56 * 112 * 56) if sites == ["p"] else 0
    rows = rows_of(graphs.geometry, result.schedule, text_rows=5)
    assert counted.get_total_flops() - shrinking == count_flops(graphs.geometry, rows, batch=2).vision
