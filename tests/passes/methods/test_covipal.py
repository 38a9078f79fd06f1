"""CoViPAL: its transformer by hand and by loops, what it hears, its loss, and what it refuses."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from models import TOTAL, build, pictures, prompt
from torch import Tensor

from tokcarve.passes import families
from tokcarve.passes.choose import top_in_order
from tokcarve.passes.errors import MethodError
from tokcarve.passes.insert import rewrite
from tokcarve.passes.methods.covipal import CoViPAL, Scorer
from tokcarve.passes.scorer import block_shapes, scored
from tokcarve.passes.stage import Frozen
from tokcarve.passes.trainee import Trial


def draws(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def drawn(blocks: int, width: int, hidden: int) -> dict[str, Tensor]:
    return {
        name: draws(*shape, seed=i) / shape[-1] ** 0.5
        for i, (name, shape) in enumerate(block_shapes(blocks, width, hidden).items())
    }


def test_without_blocks_by_hand() -> None:
    tensors = {
        "v_in.weight": torch.tensor([[1.0, 0.0], [0.0, 2.0]]),
        "t_in.weight": torch.zeros(2, 2),
        "type_embed": torch.tensor([[1.0, 0.0], [9.0, 9.0]]),
        "norm.weight": torch.tensor([2.0, 1.0]),
        "head.weight": torch.tensor([[1.0, -1.0]]),
    }
    # (2, 2) -> (2, 4) + (1, 0) = (3, 4), whose root mean square is sqrt(12.5): (6 - 4) / sqrt(12.5)
    found = scored(tensors, torch.tensor([[[2.0, 2.0]]]), torch.zeros(1, 1, 2), torch.ones(1, 1), 1)
    torch.testing.assert_close(found, torch.tensor([[2 / 12.5**0.5]]), atol=1e-5, rtol=0)


def by_loops(tensors: dict[str, Tensor], tokens: Tensor, text: Tensor, heads: int) -> list[float]:
    """One image, every row of text asked, one row and one head after the other."""

    def times(name: str, row: Tensor) -> Tensor:
        return tensors[f"{name}.weight"] @ row

    def normed(name: str, row: Tensor) -> Tensor:
        return row / math.sqrt(float((row * row).mean()) + 1e-6) * tensors[f"{name}.weight"]

    def feature(row: Tensor) -> Tensor:
        return torch.tensor([x + 1 if x > 0 else math.exp(x) for x in row.tolist()])

    rows = [times("v_in", row) + tensors["type_embed"][0] for row in tokens]
    words = [times("t_in", row) + tensors["type_embed"][1] for row in text]
    each = len(rows[0]) // heads
    slices = [slice(h * each, (h + 1) * each) for h in range(heads)]
    for block in range(sum(name.endswith("norm1.weight") for name in tensors)):
        at = f"blocks.{block}"
        seen = [normed(f"{at}.norm1", row) for row in rows]
        mixed = []
        for row in seen:
            parts = []
            for part in slices:
                query = feature(times(f"{at}.attn.q", row)[part])
                weights = [float(query @ feature(times(f"{at}.attn.k", other)[part])) for other in seen]
                values = [times(f"{at}.attn.v", other)[part] for other in seen]
                parts.append(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))
            mixed.append(times(f"{at}.attn.o", torch.cat(parts)))
        rows = [row + more for row, more in zip(rows, mixed, strict=True)]
        heard = []
        for row in rows:
            parts = []
            for part in slices:
                query = times(f"{at}.xattn.q", normed(f"{at}.norm2", row))[part]
                keys = [float(query @ times(f"{at}.xattn.k", word)[part]) / each**0.5 for word in words]
                weights = [math.exp(key) for key in keys]
                values = [times(f"{at}.xattn.v", word)[part] for word in words]
                parts.append(sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights))
            heard.append(times(f"{at}.xattn.o", torch.cat(parts)))
        rows = [row + more for row, more in zip(rows, heard, strict=True)]
        for i, row in enumerate(rows):
            fed = normed(f"{at}.norm3", row)
            gate, up = times(f"{at}.mlp.gate", fed), times(f"{at}.mlp.up", fed)
            rows[i] = row + times(f"{at}.mlp.down", gate / (1 + (-gate).exp()) * up)
    return [float(times("head", normed("norm", row))) for row in rows]


@pytest.mark.parametrize(("blocks", "heads"), [(1, 1), (2, 2)])
def test_blocks_are_the_loops(blocks: int, heads: int) -> None:
    tensors = drawn(blocks, 4, 3)
    tokens, text = draws(5, 3, seed=50), draws(3, 3, seed=51)
    found = scored(tensors, tokens[None], text[None], torch.ones(1, 3), heads)
    assert found[0].tolist() == pytest.approx(by_loops(tensors, tokens, text, heads), abs=1e-5)


def test_padding_is_not_heard() -> None:
    tensors = drawn(2, 4, 3)
    tokens, text = draws(1, 5, 3, seed=50), draws(1, 3, 3, seed=51)
    found = scored(tensors, tokens, text, torch.ones(1, 3), 2)
    padded = torch.cat([draws(1, 2, 3, seed=52), text, draws(1, 4, 3, seed=53)], dim=1)
    places = torch.tensor([[0.0, 0, 1, 1, 1, 0, 0, 0, 0]])
    torch.testing.assert_close(scored(tensors, tokens, padded, places, 2), found)
    other = scored(tensors, tokens, text + 1, torch.ones(1, 3), 2)
    assert (other - found).abs().max() > 1e-2, "the question is heard"
    nothing = scored(tensors, tokens, text, torch.zeros(1, 3), 2)
    assert nothing.isfinite().all() and (nothing - found).abs().max() > 1e-2


def scorer(**params: Any) -> Scorer:
    made = CoViPAL(**params).trainable(families.capture(build()).geometry, 16)
    assert isinstance(made, Scorer)
    return made


def test_the_loss_by_hand() -> None:
    # two heads and two text rows pay the first token 3 of 4; the scores say 1 of 2 each
    paid = torch.tensor([[[[1.0, 0.0], [1.0, 0.5]], [[0.0, 0.5], [1.0, 0.0]]]])
    trial = Trial(divergence=torch.tensor(0.5), alive={}, scores={"connector": torch.tensor([[7.0, 7.0]])}, taught=paid)
    apart = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    square = (2 * 0.25) ** 2
    assert float(scorer().loss(trial)) == pytest.approx(0.5 + apart + 0.1 * square)
    assert float(scorer(guide=3.0).loss(trial)) == pytest.approx(0.5 + 3 * (apart + 0.1 * square))
    assert float(scorer(guide=0.0).loss(trial)) == 0.5


def test_gates_sharpen() -> None:
    score = torch.tensor([[0.0, 2.0]])
    early, late = (scorer().gate(score, 1, done) for done in (0.0, 1.0))
    torch.testing.assert_close(early, torch.sigmoid(torch.tensor([[-1.0, 1.0]])))
    torch.testing.assert_close(late, torch.sigmoid(torch.tensor([[-10.0, 10.0]])))


def test_the_graph_keeps_what_scores_best() -> None:
    graphs = families.capture(build("qwen2", "siglip"))
    method = CoViPAL(blocks=1)
    trainee = method.trainable(graphs.geometry, 16)
    assert trainee is not None
    tensors = trainee.start(2)
    result = rewrite(graphs, method.stages(graphs.geometry, 16, Frozen(tensors=tensors)))
    ids, lengths = prompt([9], visual=1)
    with torch.no_grad():
        plain = graphs.vision(pictures(1))[0]
        _, kept = result.graphs.vision(pictures(1), ids, lengths)
        text = graphs.parts.embed_tokens(ids[:, 4:])
    score = scored(tensors, plain, text, torch.ones(1, 6), 8)
    assert torch.equal(kept["connector"], top_in_order(score, 16))


def test_shapes_follow_the_model() -> None:
    shapes = scorer().shapes
    assert shapes["v_in.weight"] == (48, 48) and shapes["blocks.3.mlp.up.weight"] == (96, 48)
    assert scorer(width=16, blocks=1).shapes["v_in.weight"] == (16, 48)
    assert scorer(guide_layer=2).teacher == ("language.layers.2", "text_attention")
    assert CoViPAL().trainable(families.capture(build()).geometry, TOTAL) is None


@pytest.mark.parametrize(
    ("layers", "first", "last"), [(1, 0, 0), (3, 0, 2), (4, 0, 3), (6, 1, 4), (28, 12, 21), (32, 14, 24)]
)
def test_layers_to_learn_from(layers: int, first: int, last: int) -> None:
    geometry = families.capture(build()).geometry
    deep = replace(geometry, text=replace(geometry.text, layers=layers))
    among = [(f"language.layers.{layer}", "text_attention") for layer in range(first, last + 1)]
    found = CoViPAL().trainable(deep, 16)
    assert found is not None and list(found.teachers) == among and found.teacher == among[0]
    under = found.under(among[-1])
    assert under.teacher == among[-1] and found.teacher == among[0] and under.shapes == found.shapes
    named = CoViPAL(guide_layer=0).trainable(deep, 16)
    assert named is not None and named.teachers == (("language.layers.0", "text_attention"),)


@pytest.mark.parametrize("frozen", [None, Frozen(), Frozen(counts={"connector": 16})])
def test_without_training_it_is_refused(frozen: Frozen | None) -> None:
    geometry = families.capture(build()).geometry
    with pytest.raises(MethodError, match="covipal scores with a trained module, .* pass --samples"):
        CoViPAL().stages(geometry, 16, frozen)
    assert CoViPAL().stages(geometry, TOTAL, frozen) == ()


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"width": 12}, "width=12 of covipal is no multiple of its 8 heads"),
        ({"heads": 64}, "width=0 of covipal is no multiple of its 64 heads"),
        ({"guide_layer": 3}, r"guide_layer=3 of covipal is none of the 3 layers; choose 0\.\.2"),
    ],
)
def test_what_does_not_fit_is_refused(params: dict[str, Any], said: str) -> None:
    with pytest.raises(MethodError, match=said):
        scorer(**params)
