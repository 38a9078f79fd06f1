"""VisionDrop in the language model: its counts, the recorded runs, the merge by hand, and what it must not hear."""

import pytest
import torch
from goldens_support import IMAGES, Recorded, carved, check_read, golden_graphs, golden_inputs
from hypothesis import given
from hypothesis import strategies as st
from models import TOTAL, config
from torch import Tensor
from watcher import Watcher

from tokcarve.passes import families
from tokcarve.passes.contextual import fold
from tokcarve.passes.errors import MethodError
from tokcarve.passes.graph import Seen, visual_start
from tokcarve.passes.insert import RewriteResult
from tokcarve.passes.methods.visiondrop import VisionDrop

# budget of the paper, a mean over layers -> tokens behind the last cut
LEFT = {192: 114, 128: 76, 64: 38, 32: 19}
LAYERS = (7, 15, 23)


@pytest.fixture(scope="module")
def golden() -> Recorded:
    return Recorded("visiondrop")


def runs(method: VisionDrop, tokens: int, asked: Tensor | None = None) -> tuple[RewriteResult, Watcher]:
    """The recorded prompts through both graphs, perhaps with other questions [4, 12]; what every module gave."""
    result = carved(method, tokens)
    pixels, ids = golden_inputs()
    with torch.no_grad():
        seen = Seen(*result.graphs.vision(pixels))
        entering = seen.features.shape[1]
        short = torch.cat([ids[:, : 35 + entering], ids[:, 611:] if asked is None else asked], dim=1)
        embeds, positions = result.graphs.embedding(short, seen.features)
        watcher = Watcher(result.graphs.language)
        lengths = torch.full((4,), short.shape[1])
        watcher.run(embeds, positions, lengths, visual_start(short, 319))
    return result, watcher


@pytest.mark.parametrize("budget", LEFT)
def test_counts_are_the_recorded_ones(golden: Recorded, budget: int) -> None:
    stages = VisionDrop().stages(golden_graphs().geometry, LEFT[budget], None)
    schedule = golden.get(0, str(budget), "schedule").sum(axis=1).tolist()
    assert [stage.keep for stage in stages] == schedule
    assert [stage.site for stage in stages[1:]] == [f"language.layers.{layer}" for layer in LAYERS]
    per_layer = golden.get(0, str(budget), "visual_counts_per_layer").tolist()
    rows = [schedule[sum(layer > cut for cut in LAYERS)] for layer in range(32)]
    assert rows == per_layer and sum(rows) == 32 * budget


@pytest.mark.parametrize("budget", LEFT)
def test_the_recorded_runs(golden: Recorded, budget: int) -> None:
    name = str(budget)
    assert all(golden.trusted(i, name) for i in IMAGES), "the recorded cuts have no near ties"
    result, watcher = runs(VisionDrop(order="published"), LEFT[budget])
    for number, layer in enumerate(LAYERS, 1):
        outcome = watcher.seen[f"select_rule_t{layer}"]
        received = watcher.seen[f"select_next_visual_attention_t{layer}"].mean(dim=1)
        torch.testing.assert_close(received, golden.stack(name, f"L{number}_score"), atol=1e-6, rtol=1e-4)
        dominant = golden.get(0, name, "schedule")[number][0]
        expected = torch.cat([golden.stack(name, f"L{number}_{part}") for part in ("dominant", "targets")], dim=1)
        assert torch.equal(outcome["index"], expected.long())
        # places in the block of the tokens that are no targets, and the target each goes to
        for i in IMAGES:
            joined = outcome["weights"][i, dominant:].T > 0
            others = outcome["sources"][i][joined.any(dim=1)].tolist()
            assert others == golden.get(i, name, f"L{number}_others").tolist()
            lands = joined[joined.any(dim=1)].long().argmax(dim=1).tolist()
            assert lands == golden.get(i, name, f"L{number}_assignment").tolist()
        rows = watcher.seen[f"select_merge_t{layer}"][:, 35 : 35 + expected.shape[1]]
        recorded = golden.stack(name, f"visual_hidden_in_l{layer + 1}")
        torch.testing.assert_close(rows, recorded, atol=5e-4, rtol=1e-4)
    check_read(result, golden, name, {})


def test_a_neighbouring_budget_order_or_layer_is_not_the_recorded_run(golden: Recorded) -> None:
    for method, tokens in (
        (VisionDrop(order="published"), 39),
        (VisionDrop(), 38),
        (VisionDrop(order="published", layers=(7, 15, 22)), 38),
    ):
        with pytest.raises(AssertionError):
            check_read(carved(method, tokens), golden, "64", {})


def test_what_is_kept_does_not_hear_the_question() -> None:
    other = torch.randint(5, 300, (4, 12), generator=torch.Generator().manual_seed(0))
    first, second = (runs(VisionDrop(), 38, asked)[1].seen for asked in (None, other))
    assert not torch.equal(first["head"], second["head"])
    for layer in LAYERS:
        for name in ("index", "weights"):
            assert torch.equal(first[f"select_rule_t{layer}"][name], second[f"select_rule_t{layer}"][name])


class TestByHand:
    def test_one_stage(self) -> None:
        # five tokens into three: dominant 1 and 4, anchor 0; 2 and 3 are folded into it, alike or not
        stage = VisionDrop().stages(families.geometry(config(text_layers=8)), 3, None)[-1]
        attention = torch.zeros(1, 5, 5)
        attention[0, :, 1], attention[0, 2:, 4], attention[0, 0, 3] = 0.5, 0.3, 0.2
        keys = torch.randn(1, 2, 5, 6, generator=torch.Generator().manual_seed(0))
        made = stage.rule({"next_visual_attention": attention, "next_visual_keys": keys}, {})
        assert made["index"].tolist() == [[1, 4, 0]]
        assert made["sources"].tolist() == [[0, 2, 3]]
        assert made["weights"].tolist() == [[[0, 0, 0], [0, 0, 0], [0, 0.5, 0.5]]]
        assert made["own"].tolist() == [[1, 1, 1]]
        assert (stage.how, stage.positions) == ("merge", "renumbered")

    def test_keys_count_as_their_mean_over_heads(self) -> None:
        stage = VisionDrop(layers=(1,)).stages(families.geometry(config(text_layers=8)), 9, None)[-1]
        # dominant 0..6; rest 7..12 with anchors 7 and 10; in the first head 12 is like 7, in the mean like 10
        attention = (torch.arange(13) < 7).float().expand(1, 13, 13)
        keys = torch.zeros(1, 2, 13, 2)
        keys[:, :, 7], keys[:, :, 10] = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
        keys[0, 0, 12], keys[0, 1, 12] = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])
        keys[:, :, 8], keys[:, :, 9], keys[:, :, 11] = keys[:, :, 7], 3 * keys[:, :, 10], keys[:, :, 10]
        made = stage.rule({"next_visual_attention": attention, "next_visual_keys": keys}, {})
        assert made["index"][0, 7:].tolist() == [7, 10]
        thirds = 1 / 3
        expected = torch.tensor([[0, 1, 0, 0, 0, 0], [0, 0, thirds, 0, thirds, thirds]])
        torch.testing.assert_close(made["weights"][0, 7:], expected)

    def test_where_all_keys_are_alike_the_first_anchor_takes_all(self) -> None:
        score = torch.cat([torch.ones(1, 30), torch.zeros(1, 18)], dim=1)
        made = fold(score, torch.ones(1, 48, 4), 30, 5)
        assert made["index"][0, 30:].tolist() == [30, 33, 36, 39, 42]
        assert (made["weights"][0, 30] > 0).sum() == 13 and made["weights"][0, 31:].max() == 0
        torch.testing.assert_close(made["weights"][0, 30].sum(), torch.tensor(1.0))


def looped(score: list[float], keys: Tensor, chosen: int, contextual: int) -> tuple[list[int], Tensor]:
    """Tokens that stay, and what each holds of all tokens, one token at a time."""
    total = len(score)
    dominant = sorted(sorted(range(total), key=lambda i: (-score[i], i))[:chosen])
    rest = [i for i in range(total) if i not in dominant]
    anchors = [rest[a * max(1, len(rest) // contextual)] for a in range(contextual)]
    members: dict[int, list[int]] = {anchor: [] for anchor in anchors}
    for i in rest:
        if i not in anchors:
            cosines = [float(torch.cosine_similarity(keys[i], keys[anchor], dim=0)) for anchor in anchors]
            members[anchors[cosines.index(max(cosines))]].append(i)
    held = torch.zeros(chosen + contextual, total)
    for row, token in enumerate([*dominant, *anchors]):
        held[row, token] = 1
        for member in members.get(token, []):
            held[row, member] += 1 / len(members[token])
    return [*dominant, *anchors], held


@given(st.integers(0, 10_000), st.integers(2, 20), st.data())
def test_a_plain_loop_folds_the_same(seed: int, total: int, data: st.DataObject) -> None:
    tokens = data.draw(st.integers(2, total))
    contextual = data.draw(st.integers(1, tokens - 1))
    draw = torch.Generator().manual_seed(seed)
    score = torch.randint(0, 5, (2, total), generator=draw).float()
    keys = torch.randn(2, total, 6, generator=draw, dtype=torch.float64)
    made = fold(score, keys.float(), tokens - contextual, contextual)
    for image in range(2):
        index, held = looped(score[image].tolist(), keys[image], tokens - contextual, contextual)
        assert made["index"][image].tolist() == index
        found = torch.zeros_like(held)
        found[torch.arange(tokens), index] = made["own"][image]
        found[:, made["sources"][image]] += made["weights"][image]
        torch.testing.assert_close(found, held, atol=1e-6, rtol=0)


def test_a_cut_that_would_leave_no_fewer_falls_away() -> None:
    geometry = families.geometry(config(text_layers=8))
    plan = {tokens: VisionDrop().stages(geometry, tokens, None) for tokens in range(1, TOTAL)}
    assert [(s.site, s.keep) for s in plan[16]] == [
        ("vision.layers.4", 40),
        ("language.layers.1", 29),
        ("language.layers.3", 22),
        ("language.layers.5", 16),
    ]
    assert [s.keep for s in plan[35]] == [47, 35] and plan[35][0].site == "language.layers.3"
    assert [s.keep for s in plan[63]] == [63] and plan[63][0].site == "language.layers.5"
    for tokens, stages in plan.items():
        counts = [TOTAL, *(stage.keep for stage in stages)]
        assert counts[-1] == tokens and all(b < a for a, b in zip(counts, counts[1:], strict=False))


def test_layers_that_the_model_does_not_have_are_refused() -> None:
    geometry = families.geometry(config(text_layers=3))
    with pytest.raises(MethodError, match="has 3 layers.*behind layers 0..1.*behind layer 2"):
        VisionDrop().stages(geometry, 16, None)
    assert len(VisionDrop(scope="encoder").stages(geometry, 16, None)) == 1
    assert [stage.keep for stage in VisionDrop(layers=(0, 1)).stages(geometry, 16, None)] == [30, 22, 16]
