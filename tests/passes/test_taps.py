"""Taps read what the block itself computes."""

import pytest
import torch
from models import build, pictures
from torch import Tensor

from tokcarve.passes import families
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.taps import ClsAttention, Tokens, Values, needs_cls

LAYER = 2


@pytest.fixture(scope="module")
def graphs() -> TokenGraphs:
    return families.capture(build())


@pytest.fixture(scope="module")
def hidden(graphs: TokenGraphs) -> Tensor:
    """What enters the layer: [2, 65, 32]."""
    with torch.no_grad():
        rows: Tensor = graphs.parts.patches(pictures(2))
        for block in graphs.parts.vision_blocks[:LAYER]:
            rows = block(rows)
    return rows


def test_the_cls_row_is_the_models_own_attention(graphs: TokenGraphs, hidden: Tensor) -> None:
    with torch.no_grad():
        maps = build(attention="eager").model.vision_tower(pictures(2), output_attentions=True).attentions
        row = ClsAttention(graphs.parts.vision_blocks[LAYER])(hidden)
    torch.testing.assert_close(row, maps[LAYER][:, :, 0], atol=1e-6, rtol=1e-5)


def test_dead_tokens_get_no_attention_and_leave_the_rest_in_proportion(graphs: TokenGraphs, hidden: Tensor) -> None:
    tap = ClsAttention(graphs.parts.vision_blocks[LAYER])
    alive = torch.rand(2, 64, generator=torch.Generator().manual_seed(0)) < 0.5
    with torch.no_grad():
        whole, masked = tap(hidden), tap(hidden, alive)
    everyone = torch.cat([torch.ones(2, 1, dtype=torch.bool), alive], dim=1)
    expected = torch.where(everyone[:, None], whole, 0)
    torch.testing.assert_close(masked, expected / expected.sum(-1, keepdim=True), atol=1e-6, rtol=1e-5)


def test_values_are_the_blocks_values(graphs: TokenGraphs, hidden: Tensor) -> None:
    layer = build().model.vision_tower.encoder.layers[LAYER]
    with torch.no_grad():
        expected = layer.self_attn.v_proj(layer.layer_norm1(hidden)).view(2, 65, 4, 8).transpose(1, 2)
        found = Values(graphs.parts.vision_blocks[LAYER])(hidden)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("prefix", [0, 1])
def test_tokens_come_without_the_prefix(hidden: Tensor, prefix: int) -> None:
    assert torch.equal(Tokens(prefix)(hidden), hidden[:, prefix:])


def test_taps_of_a_half_precision_model_are_float32() -> None:
    block = families.capture(build(dtype=torch.float16)).parts.vision_blocks[0]
    rows = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(0)).half()
    with torch.no_grad():
        found = [ClsAttention(block)(rows), Values(block)(rows), Tokens(1)(rows)]
    assert {t.dtype for t in found} == {torch.float32}
    torch.testing.assert_close(found[0].sum(-1), torch.ones(1, 4), atol=1e-6, rtol=0)


def test_only_the_cls_row_needs_a_cls_token() -> None:
    assert needs_cls(("values", "cls_attention"))
    assert not needs_cls(("values", "tokens"))
