"""VLA-Pruner by hand: candidates, thinning, and what its stages read and tell."""

import pytest
import torch
from models import build, pictures, prompt
from ragged import Ragged
from torch import Tensor
from twelve import SEEN, TWELVE

from tokcarve.passes import families
from tokcarve.passes.errors import MethodError
from tokcarve.passes.graph import visual_start
from tokcarve.passes.greedy import apart
from tokcarve.passes.insert import rewrite
from tokcarve.passes.methods.vla_pruner import VLAPruner, candidates, thinned

_i = torch.arange(1, 13, dtype=torch.float64)
GUIDE: Tensor = torch.softmax(torch.cos(0.8 * _i), dim=0).float().unsqueeze(0)


def test_the_fixture_of_twelve() -> None:
    among = candidates(SEEN, GUIDE, 4)
    assert among[0].nonzero().flatten().tolist() == [0, 4, 6, 7, 8, 11]
    assert thinned(apart(TWELVE), among, 4).tolist() == [[4, 0, 8, 11]]


def naive(rows: Tensor, pool: list[int], count: int) -> list[int]:
    """The reference's own words, on the candidates alone."""
    units = rows[pool] / rows[pool].norm(dim=1, keepdim=True)
    far = 1 - units @ units.T
    picked = [int(far.sort(dim=0).values[1].argmax())]
    while len(picked) < count:
        nearest = far[picked].amin(dim=0)
        nearest[picked] = -1
        picked.append(int(nearest.argmax()))
    return [pool[i] for i in picked]


@pytest.mark.parametrize("seed", range(12))
def test_masking_is_choosing_among_the_candidates_alone(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows, one, two = (torch.randn(1, *shape, generator=generator) for shape in ((40, 9), (40,), (40,)))
    for count in (2, 7, 19):
        among = candidates(one, two, count)
        pool = among[0].nonzero().flatten().tolist()
        assert pool == sorted({*one[0].topk(count).indices.tolist(), *two[0].topk(count).indices.tolist()})
        assert sorted(thinned(apart(rows), among, count)[0].tolist()) == sorted(naive(rows[0], pool, count))


def test_equal_candidates_are_all_kept_and_no_history_leaves_the_attended_ones() -> None:
    for guide in (SEEN, torch.zeros_like(SEEN)):
        among = candidates(SEEN, guide, 5)
        assert among.sum() == 5
        assert sorted(thinned(apart(TWELVE), among, 5)[0].tolist()) == among[0].nonzero().flatten().tolist()


def test_a_candidate_alone_and_identical_tokens_are_picked_once() -> None:
    same = torch.ones(1, 6, 3)
    among = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0, 0.0]])
    assert sorted(thinned(apart(same), among, 3)[0].tolist()) == [1, 2, 4]
    assert thinned(apart(same), torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0, 0.0]]), 1).tolist() == [[2]]


def test_what_an_action_looks_at_is_told_of_the_prompt_and_of_every_new_row() -> None:
    model = build("llama", text_layers=8)
    plain = families.capture(model)
    guide = torch.rand(1, 64, generator=torch.Generator().manual_seed(1))
    stages = list(VLAPruner(action_layer=5).stages(plain.geometry, 12, None))
    graphs = rewrite(plain, stages).graphs
    ids, lengths = prompt([9])
    with torch.no_grad():
        seen = graphs.see(pictures(1))
        read, positions = graphs.read(ids, seen, lengths, {"guide": guide})
        ragged = Ragged(model, stages[:1], {"guide": guide})
        embeds = graphs.embedding(ids, seen.features)[0][0]
        said = ragged.say(embeds, 3, 64, 1)
        assert read.kept["language.layers.2"][0].tolist() == said.kept["language.layers.2"]
        made = graphs.step(
            read.logits[:, -1].argmax(1, keepdim=True), positions[:, -1:] + 1, lengths, 0, (read.keys, read.values), 0,
            visual_start(ids, graphs.geometry.image_token_id),
        )  # fmt: skip
        found = [read.given["action_attention"][0], made.given["action_attention"][0]]
    wanted = told_by_hand(ragged, embeds, said.kept["language.layers.2"], said.tokens)
    for attention, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(attention, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(*found, atol=1e-3)


@torch.no_grad()
def told_by_hand(ragged: Ragged, embeds: Tensor, kept: list[int], said: list[int]) -> list[Tensor]:
    """Attention of the last prompt row, and of the token behind it, to the 12 kept tokens in layer 5."""
    found = []
    latest = ragged.text.embed_tokens(torch.tensor(said[:1]))
    for rows in (embeds, torch.cat([embeds, latest])):
        x, positions = rows, torch.arange(len(rows)).float()
        for layer in range(5):
            x, _ = ragged.layer(layer, x, positions, None)
            if layer == 2:
                at = [*range(3), *[3 + i for i in kept], *range(67, len(rows))]
                x, positions = x[at], positions[at]
        found.append(ragged.attention(5, x, positions)[:, -1, 3:15].mean(0))
    return found


def test_nothing_is_pruned_at_the_total_and_still_told() -> None:
    geometry = families.capture(build("llama", text_layers=8)).geometry
    (look,) = VLAPruner().stages(geometry, geometry.total, None)
    assert (look.how, look.gives, look.site) == ("observe", ("action_attention",), "language.layers.3")


@pytest.mark.parametrize("method", [VLAPruner(action_layer=1), VLAPruner(action_layer=8)])
def test_actions_are_looked_at_behind_the_cut_and_in_the_model(method: VLAPruner) -> None:
    geometry = families.capture(build("llama", text_layers=8)).geometry
    with pytest.raises(MethodError, match="prunes before layer 3 of 8"):
        method.stages(geometry, 12, None)
