"""LLaVolta pooling against a mean over runs by hand in the middle of the model, its positions, and what it refuses."""

import pytest
import torch
from goldens_support import golden_graphs
from greedy import answer
from layerwise import embedded, greedy, ran, said
from models import IMAGE, TOTAL, build, config, pictures, prompt
from torch import Tensor

from tokcarve.passes import families
from tokcarve.passes.errors import MethodError
from tokcarve.passes.graph import all_kept
from tokcarve.passes.insert import rewrite
from tokcarve.passes.methods.llavolta import LLaVolta


@pytest.mark.parametrize(("run", "middle"), [(2, 0), (3, 1), (4, 1), (8, 3), (576, 287)])
def test_what_the_results_are_and_stand_for(run: int, middle: int) -> None:
    (stage,) = LLaVolta().stages(golden_graphs().geometry, 576 // run, None)
    made = stage.rule({"states": torch.zeros(2, 576, 4)}, {})
    assert made["index"].tolist() == [list(range(middle, 576, run))] * 2
    tokens = torch.arange(576.0).unsqueeze(1)
    pooled = (made["weights"][0] @ tokens).squeeze(1)
    torch.testing.assert_close(pooled, torch.arange(0, 576, run) + (run - 1) / 2)
    assert (made["weights"] > 0).sum(dim=2).unique().tolist() == [run]
    assert (stage.site, stage.how, stage.positions) == ("language.layers.1", "merge", "original")


@pytest.mark.parametrize(("layer", "tokens"), [(1, 8), (2, 32), (2, 16), (6, 1)])
def test_it_is_the_model_with_its_states_averaged(layer: int, tokens: int) -> None:
    model, run = build(text_layers=8), TOTAL // tokens
    graphs = families.capture(model)
    result = rewrite(graphs, LLaVolta(layer=layer).stages(graphs.geometry, tokens, None))
    texts = [6, 9, 12]
    ids, lengths = prompt(texts)
    with torch.no_grad():
        seen = result.graphs.see(pictures(3))
        read, _ = result.graphs.read(ids, seen, lengths)
    stored = [key.shape[2] for key in read.keys]
    assert stored == [max(texts) + TOTAL] * layer + [max(texts) + tokens] * (8 - layer)
    (kept,) = all_kept(seen, read).values()
    assert kept.tolist() == [[start + (run - 1) // 2 for start in range(0, TOTAL, run)]] * 3
    _, spoken = answer(result.graphs, seen, ids, lengths, 5)
    for i, length in enumerate(lengths.tolist()):
        rows, image = embedded(model, ids[i, :length], seen.features[i], IMAGE)

        def pooled(rows: Tensor, image: slice = image) -> tuple[Tensor, list[Tensor]]:
            places = torch.arange(len(rows))
            middle, early = ran(model, range(layer), rows, places)
            mean = middle[image].view(tokens, run, -1).mean(dim=1)
            averaged = places[image].view(tokens, run).double().mean(dim=1).long()
            short = torch.cat([middle[: image.start], mean, middle[image.stop :]])
            places = torch.cat([places[: image.start], averaged, places[image.stop :]])
            last, late = ran(model, range(layer, 8), short, places)
            return said(model, last), early + late

        logits, keys = pooled(rows)
        torch.testing.assert_close(read.logits[i, : len(logits)], logits, atol=1e-4, rtol=0)
        for found, expected in zip(read.keys, keys, strict=True):
            torch.testing.assert_close(found[i, :, : expected.shape[1]], expected, atol=1e-5, rtol=1e-4)
        assert spoken[i].tolist() == greedy(model, lambda rows, pooled=pooled: pooled(rows)[0][-1], rows, 5)


def test_the_published_schemes() -> None:
    """Visual tokens by layer of 32: heavy, 8 to 1 at the input of layer 2, and light, at that of layer 16."""
    for layer, mean in ((2, 103.5), (16, 324.0)):
        (stage,) = LLaVolta(layer=layer).stages(golden_graphs().geometry, 72, None)
        assert stage.site == f"language.layers.{layer - 1}"
        assert (layer * 576 + (32 - layer) * stage.keep) / 32 == mean


def test_counts_and_layers_that_cannot_be_are_refused() -> None:
    geometry = families.geometry(config(text_layers=8))
    with pytest.raises(MethodError, match="64 visual tokens have no 24 of them; choose one of 1, 2, 4, 8, 16, 32$"):
        LLaVolta().stages(geometry, 24, None)
    with pytest.raises(MethodError, match="behind layers 0..6.*behind layer 7"):
        LLaVolta(layer=8).stages(geometry, 16, None)
    with pytest.raises(MethodError, match="behind layer -1"):
        LLaVolta(layer=0).stages(geometry, 16, None)
    assert LLaVolta().stages(geometry, TOTAL, None) == ()
