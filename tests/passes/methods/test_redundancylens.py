"""RedundancyLens: windows and few neurons, against whole layers and plain loops."""

import pytest
import torch
from models import TOTAL, build, pictures, prompt
from torch import Tensor

from tokcarve.passes import families
from tokcarve.passes.errors import MethodError
from tokcarve.passes.flops import count_flops, rows_of
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.insert import rewrite
from tokcarve.passes.invariants import check_carved
from tokcarve.passes.lean import HollowMask, LeanBlock
from tokcarve.passes.methods.redundancylens import RedundancyLens
from tokcarve.passes.text_blocks import causal_mask
from tokcarve.passes.text_taps import Place


def graphs_of(method: RedundancyLens, text: str = "llama") -> tuple[TokenGraphs, TokenGraphs]:
    plain = families.capture(build(text, text_layers=4))  # type: ignore[arg-type]
    result = rewrite(plain, method.stages(plain.geometry, TOTAL, None))
    check_carved(result.graphs, result.schedule)
    return plain, result.graphs


@torch.no_grad()
def read(graphs: TokenGraphs) -> tuple[Tensor, list[Tensor]]:
    ids, lengths = prompt([6, 11])
    found, _ = graphs.read(ids, graphs.see(pictures(2)), lengths)
    return found.logits, found.keys


def test_a_wide_window_and_all_neurons_change_nothing() -> None:
    plain, lean = graphs_of(RedundancyLens(window=TOTAL, share=1.0))
    assert torch.equal(read(plain)[0], read(lean)[0])
    plain, none = graphs_of(RedundancyLens(attention_layers=(), feed_layers=()))
    assert none.language.code == plain.language.code


def test_all_neurons_by_choice_are_the_whole_mlp() -> None:
    plain = families.capture(build("llama", text_layers=4))
    block = plain.parts.text_blocks[2]
    lean = LeanBlock(block, Place(count=TOTAL, dropped=0), neurons=96, probes=6)
    hidden = torch.randn(2, 75, 48, generator=torch.Generator().manual_seed(0))
    cos, sin = plain.parts.rotary(hidden, torch.arange(75).expand(2, -1))
    mask, start = causal_mask(hidden), torch.tensor([3, 7])
    with torch.no_grad():
        for one, other in zip(block(hidden, mask, cos, sin), lean(hidden, mask, cos, sin, start), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("start", [0, 3, 11])
def test_text_rows_have_the_whole_mlp_and_visual_rows_few_neurons(start: int) -> None:
    plain = families.capture(build("qwen2", text_layers=4))
    block = plain.parts.text_blocks[1]
    lean = LeanBlock(block, Place(count=20, dropped=0), neurons=10, probes=2)
    hidden = torch.randn(1, 31, 48, generator=torch.Generator().manual_seed(1))
    cos, sin = plain.parts.rotary(hidden, torch.arange(31).expand(1, -1))
    with torch.no_grad():
        whole, *_ = block(hidden, causal_mask(hidden), cos, sin)
        found, *_ = lean(hidden, causal_mask(hidden), cos, sin, torch.tensor([start]))
        attended, *_ = block.attend(hidden, causal_mask(hidden), cos, sin)
        rows, mlp = block.fed(attended)[0], block.mlp
        active = torch.nn.functional.silu(mlp.gate_proj(rows)) * mlp.up_proj(rows)
        chosen = active[[start + 5, start + 15]].abs().mean(0).argsort(descending=True)[:10]
        few = attended[0] + active[:, chosen] @ mlp.down_proj.weight[:, chosen].T
    visual = torch.zeros(31, dtype=torch.bool)
    visual[start : start + 20] = True
    torch.testing.assert_close(found[0, ~visual], whole[0, ~visual], atol=1e-5, rtol=0)
    torch.testing.assert_close(found[0, visual], few[visual], atol=1e-5, rtol=0)
    assert (found[0, visual] - whole[0, visual]).abs().max() > 1e-2


def test_pairs_inside_the_window_of_the_specification() -> None:
    rows = 35 + 576 + 12
    causal = causal_mask(torch.zeros(1, rows, 1))
    mask = HollowMask(576, 256)(causal, torch.tensor([35]))[0, 0]
    assert int(causal[0, 0, 35:611, 35:611].sum()) == 166_176
    assert int(mask[35:611, 35:611].sum()) == 114_816
    assert torch.equal(mask[611:], causal[0, 0, 611:]) and torch.equal(mask[:, :35], causal[0, 0, :, :35])


def test_caches_keep_every_row_and_decoding_is_the_models_own() -> None:
    plain, lean = graphs_of(RedundancyLens(window=8))
    (whole, keys), (found, others) = read(plain), read(lean)
    assert [k.shape for k in keys] == [k.shape for k in others]
    assert (whole - found).abs().max() > 1e-2
    assert lean.decode.code == plain.decode.code


def test_flops_count_the_neurons_that_are_left() -> None:
    plain = families.capture(build("llama", text_layers=4))
    schedule = rewrite(plain, RedundancyLens(share=0.25).stages(plain.geometry, TOTAL, None)).schedule
    whole, lean = (count_flops(plain.geometry, rows_of(plain.geometry, cuts, 10)) for cuts in ((), schedule))
    # two layers, 64 rows, three products of 48 x 72 neurons fewer, two FLOPs each
    assert whole.prefill - lean.prefill == 2 * 64 * 3 * 48 * 72 * 2
    assert whole.decode == lean.decode


@pytest.mark.parametrize(
    ("method", "tokens", "text"),
    [
        (RedundancyLens(), 32, "keeps all 64 visual tokens and works less on them, and 32 were asked for"),
        (RedundancyLens(feed_layers=(2, 4)), TOTAL, "has layers 0..3, and layer 4 was named"),
    ],
)
def test_what_it_refuses(method: RedundancyLens, tokens: int, text: str) -> None:
    geometry = families.capture(build("llama", text_layers=4)).geometry
    with pytest.raises(MethodError, match=text):
        method.stages(geometry, tokens, None)
