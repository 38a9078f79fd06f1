"""ToDRE: directions worked by hand, a plain loop, its pivot, its late exit, and what it refuses."""

import numpy as np
import pytest
import torch
from goldens_support import GOLDENS, IMAGES, carved, golden_inputs
from greedy import answer
from hypothesis import given
from hypothesis import strategies as st
from layerwise import embedded, greedy, ran, said
from models import IMAGE, TOTAL, build, config, pictures, prompt
from torch import Tensor
from watcher import Watcher

from tokcarve.passes import families
from tokcarve.passes.choose import best
from tokcarve.passes.errors import MethodError
from tokcarve.passes.greedy import apart, spread
from tokcarve.passes.insert import rewrite
from tokcarve.passes.methods.divprune import DivPrune
from tokcarve.passes.methods.todre import ToDRE


def order(tokens: Tensor, first: list[int], count: int) -> Tensor:
    return spread(apart(tokens), torch.tensor(first), count, together=torch.add)


def by_loops(tokens: Tensor, first: int, count: int) -> list[int]:
    """One image [n, hidden] in float64, the sums made anew for every pick."""
    rows = (tokens.double() / tokens.double().norm(dim=1, keepdim=True)).numpy()
    picked = [first]
    while len(picked) < count:
        total = rows[picked].sum(axis=0)
        picked.append(min((i for i in range(len(rows)) if i not in picked), key=lambda i: (float(rows[i] @ total), i)))
    return picked


def plane(*degrees: float) -> Tensor:
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angles.cos(), angles.sin()], dim=1).unsqueeze(0)


class TestByHand:
    def test_directions_in_a_plane(self) -> None:
        tokens = plane(0, 12, 90, 105, 170, 340)
        assert order(tokens, [0], 6).tolist() == [[0, 4, 5, 3, 2, 1]]
        nearest = spread(apart(tokens), torch.tensor([0]), 6)
        assert nearest.tolist() == [[0, 4, 2, 5, 3, 1]], "the earlier rule of the paper, by the nearest picked token"

    def test_the_second_is_least_like_the_pivot(self) -> None:
        tokens = plane(0, 12, 90, 105, 170, 340)
        for pivot in range(6):
            cosines = (tokens[0] @ tokens[0, pivot]).tolist()
            assert order(tokens, [pivot], 2).tolist() == [[pivot, cosines.index(min(cosines))]]

    def test_a_tie_goes_to_the_lower_index(self) -> None:
        tokens = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [0.0, 1.0]]])
        assert order(tokens, [0], 4).tolist() == [[0, 1, 2, 3]]


@given(st.integers(0, 10_000), st.integers(1, 30))
def test_a_plain_loop_picks_the_same(seed: int, count: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(2, 30, 12, generator=generator)
    first = torch.randint(0, 30, (2,), generator=generator).tolist()
    picked = order(tokens, first, count)
    assert picked.tolist() == [by_loops(image, pivot, count) for image, pivot in zip(tokens, first, strict=True)]
    assert torch.equal(order(tokens, first, 30)[:, :count], picked), "more tokens go on where fewer stopped"
    assert all(len(set(ids)) == count for ids in picked.tolist())


def test_lengths_do_not_matter() -> None:
    tokens = torch.randn(1, 40, 8, generator=torch.Generator().manual_seed(1))
    scales = 2.0 ** torch.randint(-8, 9, (1, 40, 1), generator=torch.Generator().manual_seed(2))
    assert torch.equal(order(scales * tokens, [3], 20), order(tokens, [3], 20))


def test_the_pivot_is_what_cls_sees_most_in_the_last_used_layer() -> None:
    graphs = families.capture(build())
    pixels = pictures(4)
    with torch.no_grad():
        maps = build(attention="eager").model.vision_tower(pixels, output_attentions=True).attentions
    rows = [attention.mean(dim=1)[:, 0, 1:] for attention in maps]
    watcher = Watcher(rewrite(graphs, ToDRE().stages(graphs.geometry, 10, None)).graphs.vision)
    with torch.no_grad():
        _, kept = watcher.run(pixels)
        _, alone = rewrite(graphs, ToDRE().stages(graphs.geometry, 1, None)).graphs.vision(pixels)
    torch.testing.assert_close(watcher.seen["select_rule_l4"]["seen"], rows[4], atol=1e-6, rtol=1e-5)
    assert torch.equal(alone["connector"][:, 0], best(rows[4]))
    assert not torch.equal(best(rows[4]), best(rows[5])), "the layer behind the features is not read"
    picked = order(watcher.seen["connector"], best(rows[4]).tolist(), 10)
    assert torch.equal(kept["connector"], picked.sort(dim=1).values)


def test_the_pivot_on_recorded_attention() -> None:
    with np.load(GOLDENS / "reference.npz") as recorded:
        rows = torch.from_numpy(np.stack([recorded[f"img{i}/cls_attn_l20_l21_l22"] for i in IMAGES]))
    with torch.no_grad():
        _, kept = carved(ToDRE(), 1).graphs.vision(golden_inputs()[0])
    assert kept["connector"][:, 0].tolist() == rows[:, 2, 1:].argmax(dim=1).tolist()
    assert rows[:, 2, 1:].argmax(dim=1).tolist() != rows[:, 1, 1:].argmax(dim=1).tolist()


def test_it_is_another_method_than_its_neighbour() -> None:
    graphs, pixels = families.capture(build()), pictures(2)
    with torch.no_grad():
        _, ours = rewrite(graphs, ToDRE().stages(graphs.geometry, 16, None)).graphs.vision(pixels)
        _, theirs = rewrite(graphs, DivPrune().stages(graphs.geometry, 16, None)).graphs.vision(pixels)
    assert not torch.equal(ours["connector"], theirs["connector"])


def test_a_tower_without_cls_is_refused() -> None:
    graphs = families.capture(build("llama", "siglip"))
    with pytest.raises(MethodError, match="no \\[CLS\\] token"):
        rewrite(graphs, ToDRE().stages(graphs.geometry, 10, None))


@pytest.mark.parametrize(("layers", "site"), [(32, 27), (28, 23), (8, 6), (6, 4), (3, 1), (2, 0)])
def test_late_layers_see_text_alone(layers: int, site: int) -> None:
    *chosen, last = ToDRE().stages(families.geometry(config(text_layers=layers)), 16, None)
    assert [(stage.how, stage.keep) for stage in chosen] == [("observe", TOTAL), ("choose", 16)]
    assert (last.site, last.how, last.positions) == (f"language.layers.{site}", "exit", "original")


def test_without_the_exit_the_language_model_drops_nothing() -> None:
    geometry = families.geometry(config(text_layers=1))
    assert [stage.site for stage in ToDRE(exit=False).stages(geometry, 16, None)] == ["vision.layers.4", "connector"]
    with pytest.raises(MethodError, match="behind layer -1"):
        ToDRE().stages(geometry, 16, None)
    for exits in (True, False):
        assert ToDRE(exit=exits).stages(families.geometry(config()), TOTAL, None) == ()


def test_the_exit_hides_the_image_from_later_layers() -> None:
    model, pixels = build(text_layers=8), pictures(2)
    graphs = families.capture(model)
    whole, result = (rewrite(graphs, ToDRE(exit=e).stages(graphs.geometry, 10, None)).graphs for e in (False, True))
    ids, lengths = prompt([7, 11], visual=10)
    with torch.no_grad():
        seen, stays = result.see(pixels), whole.see(pixels)
        read, _ = result.read(ids, seen, lengths)
    assert torch.equal(seen.features, stays.features)
    assert [key.shape[2] for key in read.keys] == [21] * 7 + [11]
    _, spoken = answer(result, seen, ids, lengths, 5)
    for i, length in enumerate(lengths.tolist()):
        rows, image = embedded(model, ids[i, :length], seen.features[i], IMAGE)

        def full(rows: Tensor, image: slice = image) -> Tensor:
            places = torch.arange(len(rows))
            middle, _ = ran(model, range(7), rows, places)
            return said(model, ran(model, [7], middle, places, hidden=image)[0])

        logits = full(rows)[[*range(image.start), *range(image.stop, length)]]
        torch.testing.assert_close(read.logits[i, : len(logits)], logits, atol=1e-4, rtol=0)
        assert spoken[i].tolist() == greedy(model, lambda rows, full=full: full(rows)[-1], rows, 5)
    shown, _ = answer(whole, stays, ids, lengths, 1)
    assert (shown - answer(result, seen, ids, lengths, 1)[0]).abs().amax() > 1e-2
