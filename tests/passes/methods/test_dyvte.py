"""DyVTE with a fixed exit against hiding the image from later layers, its caches and positions, and what it refuses."""

import pytest
import torch
from greedy import answer
from layerwise import embedded, greedy, ran, said
from models import IMAGE, TOTAL, Text, build, config, pictures, prompt
from torch import Tensor

from tokcarve.passes import families
from tokcarve.passes.errors import MethodError
from tokcarve.passes.insert import rewrite
from tokcarve.passes.methods.dyvte import DyVTE

TEXT = [6, 9, 12]  # rows of the prompts beside the image, three of them before it


@pytest.mark.parametrize(("text", "layer"), [("llama", 0), ("llama", 3), ("qwen2", 5), ("mistral", 6)])
def test_it_is_the_model_whose_later_layers_do_not_see_the_image(text: Text, layer: int) -> None:
    model = build(text, text_layers=8)
    graphs = families.capture(model)
    result = rewrite(graphs, DyVTE(layer=layer).stages(graphs.geometry, TOTAL, None))
    ids, lengths = prompt(TEXT)
    with torch.no_grad():
        seen = result.graphs.see(pictures(3))
        read, _ = result.graphs.read(ids, seen, lengths)
    stored = [key.shape[2] for key in read.keys]
    assert stored == [max(TEXT) + TOTAL] * (layer + 1) + [max(TEXT)] * (7 - layer)
    _, spoken = answer(result.graphs, seen, ids, lengths, 5)
    for i, length in enumerate(lengths.tolist()):
        rows, image = embedded(model, ids[i, :length], seen.features[i], IMAGE)
        left = [*range(image.start), *range(image.stop, length)]

        def full(rows: Tensor, image: slice = image) -> tuple[Tensor, list[Tensor]]:
            places = torch.arange(len(rows))
            middle, early = ran(model, range(layer + 1), rows, places)
            last, late = ran(model, range(layer + 1, 8), middle, places, hidden=image)
            return said(model, last), early + late

        logits, keys = full(rows)
        torch.testing.assert_close(read.logits[i, : len(left)], logits[left], atol=1e-4, rtol=0)
        for number, key in enumerate(keys):
            expected = key if number <= layer else key[:, left]
            # keys hold their positions: text keeps those that it had beside the image
            found = read.keys[number][i, :, : expected.shape[1]]
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
        assert spoken[i].tolist() == greedy(model, lambda rows, full=full: full(rows)[0][-1], rows, 5)


def test_the_layer_matters() -> None:
    graphs = families.capture(build(text_layers=8))
    found = list[Tensor]()
    for layer in (2, 3, None, 6):
        result = rewrite(graphs, DyVTE(layer=layer).stages(graphs.geometry, TOTAL, None))
        with torch.no_grad():
            found.append(answer(result.graphs, result.graphs.see(pictures(2)), *prompt([8, 8]), 1)[0])
    early, half, default, late = found
    assert torch.equal(half, default)
    assert all((half - other).abs().amax() > 1e-2 for other in (early, late))


@pytest.mark.parametrize(("layers", "site"), [(32, 15), (28, 13), (8, 3), (3, 0), (2, 0)])
def test_half_of_the_depth_sees_the_image(layers: int, site: int) -> None:
    (stage,) = DyVTE().stages(families.geometry(config(text_layers=layers)), TOTAL, None)
    assert (stage.site, stage.how, stage.keep) == (f"language.layers.{site}", "exit", 0)
    assert stage.positions == "original"


def test_counts_and_layers_that_cannot_be_are_refused() -> None:
    geometry = families.geometry(config(text_layers=8))
    with pytest.raises(MethodError, match="keeps all 64 visual tokens until they leave together, and 16 were asked"):
        DyVTE().stages(geometry, 16, None)
    with pytest.raises(MethodError, match="behind layers 0..6.*behind layer 7"):
        DyVTE(layer=7).stages(geometry, TOTAL, None)
