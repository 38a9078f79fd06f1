"""Taps read what the block itself computes."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from models import IMAGE, build, pictures, prompt
from torch import Tensor

from tokcarve.passes import families
from tokcarve.passes.blocks import VisionBlock
from tokcarve.passes.choose import top_in_order
from tokcarve.passes.errors import MethodError, TapNotFound
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.insert import rewrite
from tokcarve.passes.invariants import check_carved
from tokcarve.passes.stage import Carry, Outcome, Signals, Stage
from tokcarve.passes.taps import Attention, ClsAttention, ClsQuery, HeadNorms, Keys, Text, Tokens, Values, needs_cls

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
        everyone = torch.cat([torch.ones(2, 1, dtype=torch.bool), alive], dim=1)
        whole, masked = tap(hidden), tap(hidden, everyone[:, None, None])
    expected = torch.where(everyone[:, None], whole, 0)
    torch.testing.assert_close(masked, expected / expected.sum(-1, keepdim=True), atol=1e-6, rtol=1e-5)


def test_a_bias_counts_a_token_as_often_as_it_says(graphs: TokenGraphs, hidden: Tensor) -> None:
    tap = ClsAttention(graphs.parts.vision_blocks[LAYER])
    size = torch.randint(1, 5, (2, 65), generator=torch.Generator().manual_seed(0)).float()
    with torch.no_grad():
        whole, weighed = tap(hidden), tap(hidden, size.log()[:, None, None])
    expected = whole * size[:, None]
    torch.testing.assert_close(weighed, expected / expected.sum(-1, keepdim=True), atol=1e-6, rtol=1e-5)


def test_the_map_is_the_models_own_attention(graphs: TokenGraphs, hidden: Tensor) -> None:
    with torch.no_grad():
        maps = build(attention="eager").model.vision_tower(pictures(2), output_attentions=True).attentions
        found = Attention(graphs.parts.vision_blocks[LAYER])(hidden)
    torch.testing.assert_close(found, maps[LAYER].mean(1), atol=1e-6, rtol=1e-5)


def norms_by_hand(hidden: Tensor, weigh: Tensor | None = None) -> Tensor:
    """From the maps of the model itself and its values, each column of a map weighed and rows made to sum to 1."""
    layer = build().model.vision_tower.encoder.layers[LAYER]
    with torch.no_grad():
        maps = build(attention="eager").model.vision_tower(pictures(2), output_attentions=True).attentions[LAYER]
        values = layer.self_attn.v_proj(layer.layer_norm1(hidden))
    found = torch.zeros(2, 4, 65)
    for image in range(2):
        for head in range(4):
            shares = maps[image, head] if weigh is None else maps[image, head] * weigh[image]
            given = (shares / shares.sum(dim=1, keepdim=True)) @ values[image, :, 8 * head : 8 * head + 8]
            found[image, head] = given.square().sum(dim=1).sqrt()
    return found


def test_head_norms_are_of_what_the_models_own_heads_give(graphs: TokenGraphs, hidden: Tensor) -> None:
    with torch.no_grad():
        found = HeadNorms(graphs.parts.vision_blocks[LAYER])(hidden)
    torch.testing.assert_close(found, norms_by_hand(hidden), atol=1e-6, rtol=1e-5)


def test_head_norms_see_the_attention_of_the_block(graphs: TokenGraphs, hidden: Tensor) -> None:
    tap, generator = HeadNorms(graphs.parts.vision_blocks[LAYER]), torch.Generator().manual_seed(0)
    alive = torch.cat([torch.ones(2, 1), (torch.rand(2, 64, generator=generator) < 0.5).float()], dim=1)
    size = torch.randint(1, 5, (2, 65), generator=generator).float()
    with torch.no_grad():
        masked, weighed = tap(hidden, alive.bool()[:, None, None]), tap(hidden, size.log()[:, None, None])
    torch.testing.assert_close(masked, norms_by_hand(hidden, alive), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(weighed, norms_by_hand(hidden, size), atol=1e-6, rtol=1e-5)
    assert (masked - weighed).abs().max() > 1e-3


def test_head_norms_are_scaled_as_the_block_is(graphs: TokenGraphs, hidden: Tensor) -> None:
    block = VisionBlock(graphs.parts.vision_blocks[LAYER].layer, heads=4, scale=1.5)
    with torch.no_grad():
        found = HeadNorms(block)(hidden)
        query, key, value = (block.project(which, block.normed(hidden)) for which in "qkv")
        expected = (torch.softmax(1.5 * query @ key.transpose(2, 3), dim=3) @ value).square().sum(3).sqrt()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)


def test_head_norms_of_half_precision_are_float32(hidden: Tensor) -> None:
    graphs = families.capture(build(dtype=torch.bfloat16))
    with torch.no_grad():
        found = HeadNorms(graphs.parts.vision_blocks[LAYER])(hidden.bfloat16(), torch.zeros(2, 1, 1, 65).bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, norms_by_hand(hidden), atol=0.05, rtol=0.1)


def test_keys_and_queries_are_the_blocks_own(graphs: TokenGraphs, hidden: Tensor) -> None:
    layer = build().model.vision_tower.encoder.layers[LAYER]
    block = graphs.parts.vision_blocks[LAYER]
    with torch.no_grad():
        rows = layer.layer_norm1(hidden)
        keys, query = (project(rows).view(2, 65, 4, 8).transpose(1, 2) for project in _projections(layer))
        torch.testing.assert_close(Keys(block)(hidden), keys, atol=1e-6, rtol=0)
        torch.testing.assert_close(ClsQuery(block)(hidden), query[:, :, :1], atol=1e-6, rtol=0)


def _projections(layer: Any) -> tuple[Any, Any]:
    return layer.self_attn.k_proj, layer.self_attn.q_proj


def test_the_next_layer_can_be_read_without_running_it(graphs: TokenGraphs) -> None:
    def rule(signals: Signals, carry: Carry) -> Outcome:
        return {"score": (signals["next_keys"][:, :, 1:] * signals["next_cls_query"]).sum((1, 3))}

    stage = Stage(site="vision.layers.4", reads=("next_keys", "next_cls_query"), rule=rule, how="choose", keep=9)
    tower = build().model.vision_tower
    with torch.no_grad():
        _, kept = rewrite(graphs, [stage]).graphs.vision(pictures(2))
        last = tower.encoder.layers[5]
        rows = last.layer_norm1(tower(pictures(2), output_hidden_states=True).hidden_states[5])
        score = (last.self_attn.k_proj(rows)[:, 1:] * last.self_attn.q_proj(rows)[:, :1]).sum(-1)
    assert torch.equal(kept["vision.layers.4"], top_in_order(score, 9))
    siglip = families.capture(build("llama", "siglip"))
    with pytest.raises(TapNotFound, match="vision.layers.5 is the tower's last layer"):
        rewrite(siglip, [replace(stage, site="vision.layers.5", reads=("next_keys",))])


@pytest.mark.parametrize(
    ("ids", "asked"),
    [
        ([1, 5, IMAGE, IMAGE, 7, 9], [7, 9]),
        ([1, 5, IMAGE, 7, 0, 0], [7]),
        ([1, 5, 8, IMAGE, 0, 0], [1, 5, 8]),  # nothing behind the image: all of the text
        ([IMAGE, IMAGE, IMAGE, IMAGE, IMAGE, IMAGE], []),
    ],
)
def test_the_question_is_the_text_behind_the_image(graphs: TokenGraphs, ids: list[int], asked: list[int]) -> None:
    table = build().model.language_model.embed_tokens.weight
    length = len([token for token in ids if token])
    with torch.no_grad():
        found = Text(graphs.parts.embed_tokens, IMAGE)(torch.tensor([ids]), torch.tensor([length]))
    expected = table[asked].mean(0) if asked else torch.zeros(48)
    torch.testing.assert_close(found[0], expected.detach(), atol=1e-6, rtol=0)


def test_a_graph_that_reads_the_question_takes_the_prompt(graphs: TokenGraphs) -> None:
    def rule(signals: Signals, carry: Carry) -> Outcome:
        return {"score": (signals["tokens"] @ signals["text"].unsqueeze(2)).squeeze(2)}

    stage = Stage(site="connector", reads=("tokens", "text"), rule=rule, how="choose", keep=9)
    carved = rewrite(graphs, [stage])
    check_carved(carved.graphs, carved.schedule)
    ids, lengths = prompt([9, 14], visual=2)
    with torch.no_grad():
        whole, _, _ = graphs.see(pictures(2))
        _, kept, _ = carved.graphs.see(pictures(2), ids, lengths)
        question = Text(graphs.parts.embed_tokens, IMAGE)(ids, lengths)
    assert not graphs.reads_text and carved.graphs.reads_text
    assert torch.equal(kept["connector"], top_in_order((whole @ question.unsqueeze(2)).squeeze(2), 9))
    with pytest.raises(MethodError, match="reads the question"):
        carved.graphs.see(pictures(2))


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
