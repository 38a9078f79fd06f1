"""FlowCut's cut in the language model: its score by hand and by plain loops, the model behind it, and its counts."""

import math
from typing import Literal

import pytest
import torch
from greedy import answer
from layerwise import embedded, greedy, ran, said
from models import IMAGE, TOTAL, build, config, pictures, prompt
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb
from watcher import Watcher

from tokcarve.passes import families
from tokcarve.passes.calibrate import frozen_counts, observe, shared
from tokcarve.passes.errors import MethodError
from tokcarve.passes.flow import flows
from tokcarve.passes.graph import all_kept, thread
from tokcarve.passes.insert import rewrite
from tokcarve.passes.methods.flowcut import FlowCut
from tokcarve.passes.stage import Frozen

CUT = "language.layers.1"


def test_the_score_by_hand() -> None:
    # attention 2/3 and 1/3; products of values 0 and 2 ln 3, over the root of four 0 and ln 3; norms 2 and 4 ln 3
    logits = torch.tensor([[[math.log(2), 0.0]]])
    values = torch.tensor([[[[0.0, 1.0, -1.0, 0.0], [2 * math.log(3), 0.0, 2 * math.log(3), 0.0]]]])
    last = torch.tensor([[[[1.0, 0.0, 0.0, 5.0]]]])
    expected = torch.tensor([[(2 / 3 + 1 / 4) * 2, (1 / 3 + 3 / 4) * 4 * math.log(3)]])
    torch.testing.assert_close(flows(logits, values, last), expected)


def test_the_norm_is_that_of_the_mean_over_heads() -> None:
    values = torch.tensor([[[[3.0], [5.0]], [[1.0], [-5.0]]]])
    score = flows(torch.zeros(1, 4, 2), values, torch.zeros(1, 2, 1, 1))
    torch.testing.assert_close(score, torch.tensor([[2.0, 0.0]]))


@torch.no_grad()
def looped(model: object, entering: Tensor, image: slice) -> list[float]:
    """Scores of the visual rows of `entering` [rows, hidden], which enter layer 1, one number at a time."""
    text = model.model.language_model  # type: ignore[attr-defined]
    block = text.layers[1]
    x = block.input_layernorm(entering)
    q, k, v = (
        getattr(block.self_attn, f"{name}_proj")(x).unflatten(-1, (-1, block.self_attn.head_dim)).transpose(0, 1)
        for name in "qkv"
    )
    cos, sin = text.rotary_emb(entering, torch.arange(len(entering)).unsqueeze(0))
    q, k = (one[0] for one in apply_rotary_pos_emb(q.unsqueeze(0), k.unsqueeze(0), cos, sin))
    heads, group, dim = len(q), len(q) // len(k), q.shape[-1]
    tokens = range(image.start, image.stop)
    seen, similar = [0.0] * len(tokens), [0.0] * len(tokens)
    for head in range(heads):
        key, value = k[head // group], v[head // group]
        for found, products in (
            (seen, [float(q[head, -1] @ key[j]) / math.sqrt(dim) for j in tokens]),
            (similar, [float(value[-1] @ value[j]) / math.sqrt(dim) for j in tokens]),
        ):
            whole = sum(math.exp(product) for product in products)
            for j, product in enumerate(products):
                found[j] += math.exp(product) / whole / heads
    strength = [sum(abs(float(v[:, j, c].sum())) / len(v) for c in range(dim)) for j in tokens]
    return [(a / sum(seen) + b / sum(similar)) * s for a, b, s in zip(seen, similar, strength, strict=True)]


@pytest.mark.parametrize("tokens", [6, 40])
def test_a_plain_loop_cuts_the_same(tokens: int) -> None:
    """Half as many behind layer 1 as leave the tower; at 40 of 64 all leave the tower."""
    model = build(text_layers=8)
    graphs = families.capture(model)
    result = rewrite(graphs, FlowCut(language_stage=True).stages(graphs.geometry, tokens, None))
    entering = min(2 * tokens, TOTAL)
    assert [(s.site, s.keep) for s in result.schedule][-1] == (CUT, tokens)
    assert thread(result.graphs.vision).count == entering and result.graphs.handed == ()
    ids, lengths = prompt([6, 11], visual=entering)
    with torch.no_grad():
        seen = result.graphs.see(pictures(2))
        read, _ = result.graphs.read(ids, seen, lengths)
        embeds, positions = result.graphs.embedding(ids, seen.features)
        watcher = Watcher(result.graphs.language)
        watcher.run(embeds, positions, lengths, torch.tensor([3, 3]))
    scores = watcher.seen["select_rule_t1"]["score"]
    assert [key.shape[2] for key in read.keys] == [11 + entering] * 2 + [11 + tokens] * 6
    _, spoken = answer(result.graphs, seen, ids, lengths, 5)
    last = list(seen.kept.values())[-1] if seen.kept else torch.arange(TOTAL).expand(2, -1)
    for i, length in enumerate(lengths.tolist()):
        rows, image = embedded(model, ids[i, :length], seen.features[i], IMAGE)
        entered, _ = ran(model, [0], rows, torch.arange(len(rows)))
        by_hand = looped(model, entered, image)
        torch.testing.assert_close(scores[i], torch.tensor(by_hand), atol=1e-5, rtol=1e-4)
        best = sorted(sorted(range(entering), key=lambda j: (-by_hand[j], j))[:tokens])
        assert read.kept[CUT][i].tolist() == best
        assert all_kept(seen, read)[CUT][i].tolist() == last[i, best].tolist()
        left = [*range(image.start), *(image.start + j for j in best)]

        def cut(rows: Tensor, left: list[int] = left, stop: int = image.stop) -> Tensor:
            stays, _ = ran(model, range(2), rows, torch.arange(len(rows)))
            stays = stays[[*left, *range(stop, len(rows))]]
            # numbered again from 0
            return said(model, ran(model, range(2, 8), stays, torch.arange(len(stays)))[0])

        logits = cut(rows)
        torch.testing.assert_close(read.logits[i, : len(logits)], logits, atol=1e-4, rtol=0)
        assert spoken[i].tolist() == greedy(model, lambda rows, cut=cut: cut(rows)[-1], rows, 5)


@pytest.mark.parametrize("form", ["static", "exact", "single"])
def test_the_tower_keeps_twice_the_count(form: Literal["static", "exact", "single"]) -> None:
    geometry = families.geometry(config(text_layers=8))
    for tokens in range(1, TOTAL):
        *first, cut = FlowCut(form=form, language_stage=True).stages(geometry, tokens, None)
        alone = FlowCut(form=form).stages(geometry, min(2 * tokens, TOTAL), None)
        assert [(s.site, s.how, s.keep) for s in first] == [(s.site, s.how, s.keep) for s in alone]
        assert (cut.site, cut.how, cut.keep, cut.positions) == (CUT, "choose", tokens, "renumbered")
    assert FlowCut(form=form, language_stage=True).stages(geometry, TOTAL, None) == ()


def test_calibration_counts_what_leaves_the_tower() -> None:
    graphs = families.capture(build(text_layers=8))
    method = FlowCut(language_stage=True)
    dynamic = method.dynamic()
    assert dynamic == FlowCut(form="exact", language_stage=True) and dynamic is not None
    exact = rewrite(graphs, dynamic.stages(graphs.geometry, 8, None))
    observed = observe(exact, pictures(1))
    assert len(observed[0].kept) == 16
    static = rewrite(graphs, method.stages(graphs.geometry, 8, Frozen(counts=frozen_counts([observed[0].counts], 8))))
    assert shared(exact, static, pictures(1)) == 1.0


def test_a_language_model_of_two_layers_is_refused() -> None:
    with pytest.raises(MethodError, match="has 2 layers.*behind layers 0..0.*behind layer 1"):
        FlowCut(language_stage=True).stages(families.geometry(config(text_layers=2)), 8, None)
