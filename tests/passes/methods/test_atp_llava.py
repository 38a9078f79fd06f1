"""ATP-LLaVA: margins by hand, statistics by loops, slots of what is gone, counts, losses, and what it refuses."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import TOTAL, build, pictures
from torch import Tensor

from tokcarve.passes import families
from tokcarve.passes.asking import Question, ask, likeness
from tokcarve.passes.choose import top_in_order
from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.methods.atp_llava import ATPLlava, ThresholdHeads
from tokcarve.passes.stage import Frozen, Look
from tokcarve.passes.thresholds import level_for, margin
from tokcarve.passes.trainee import Trial
from tokcarve.passes.training import lesson_of, try_out
from tokcarve.recipes.carve import rewritten

LAYERS = 8


def geometry_of(layers: int = LAYERS) -> Geometry:
    return families.capture(build("llama", text_layers=layers)).geometry


def heads(tokens: int = 16, **params: Any) -> ThresholdHeads:
    made = ATPLlava(**params).trainable(geometry_of(), tokens)
    assert isinstance(made, ThresholdHeads)
    return made


class TestMargin:
    def test_by_hand(self) -> None:
        seen, alive = torch.tensor([[1.0, 2.0, 3.0, 5.0]]), torch.ones(1, 4)
        spatial = torch.tensor([[0.25, -1.0, 0.25, -1.0]])
        found = margin(seen, alive, torch.tensor([[0.5]]), torch.tensor([[0.1]]), spatial)
        # importance 0, 1/4, 1/2, 1 less 0.5, or place 0.25 less 0.1, whichever is more; then a thousandth
        wanted = [0.15, -0.25 + 0.00025, 0.15 + 0.0005, 0.5 + 0.001]
        assert found[0].tolist() == pytest.approx(wanted)

    def test_the_dead_set_no_scale(self) -> None:
        seen, spatial = torch.tensor([[0.0, 2.0, 3.0, 9.0]]), torch.full((1, 4), -1.0)
        alive = torch.tensor([[0.0, 1.0, 1.0, 0.01]])
        found = margin(seen, alive, torch.tensor([[0.5]]), torch.tensor([[0.1]]), spatial)
        assert found[0, 1:3].tolist() == pytest.approx([-0.5, 0.501])

    @given(st.integers(0, 199))
    def test_the_best_are_those_that_pass_a_threshold(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        seen, limits = torch.rand(1, 20, generator=draw), torch.rand(2, 1, 1, generator=draw) * 0.8
        spatial = torch.where(torch.rand(1, 20, generator=draw) > 0.7, 0.25, -1.0)
        worth = (seen - seen.min()) / (seen.max() - seen.min())
        passing = ((worth > limits[0]) | (spatial > limits[1])).nonzero()[:, 1].tolist()
        found = margin(seen, torch.ones(1, 20), limits[0], limits[1], spatial)
        # the thousandth never lifts a token that passes neither above one that passes
        close = ((worth - limits[0]).abs().min() < 0.002) or ((0.25 - limits[1]).abs().min() < 0.002)
        if passing and not close:
            assert top_in_order(found, len(passing))[0].tolist() == passing

    def test_equal_attention_is_worth_nothing(self) -> None:
        found = margin(torch.ones(1, 3), torch.ones(1, 3), torch.tensor([[0.5]]), torch.tensor([[0.1]]), -torch.ones(3))
        torch.testing.assert_close(found, torch.full((1, 3), -0.5))


def test_statistics_and_slots_are_the_loops() -> None:
    """The second cut, where eight tokens of the 64 are left: what is gone holds zero in its slot."""
    method, geometry = ATPLlava(layers=(0, 2), width=3), geometry_of()
    trainee = method.trainable(geometry, 4)
    assert trainee is not None
    tensors = {name: 3 * one for name, one in trainee.start(1).items()}
    stage = method.stages(geometry, 4, Frozen(tensors=tensors))[1]
    draw = torch.Generator().manual_seed(0)
    n, places, real = 8, 5, 3
    slot = torch.randperm(TOTAL, generator=draw)[:n].sort().values
    each = torch.rand(1, n, n, generator=draw)
    text = torch.rand(1, 2, places, n, generator=draw)
    text[:, :, real:] = 0
    asked = torch.tensor([[1.0] * real + [0.0] * (places - real)])
    signals = {"visual_attention": each, "text_attention": text, "asked": asked}
    outcome = stage.rule(signals, {"slot": slot[None]})
    own = [sum(float(each[0, j, i]) for j in range(n)) / n for i in range(n)]
    cross = [sum(float(text[0, h, t, i]) for h in range(2) for t in range(real)) / 2 / real for i in range(n)]
    full = [0.0] * (2 * TOTAL)
    for i in range(n):
        full[int(slot[i])], full[TOTAL + int(slot[i])] = own[i], cross[i]
    length = math.sqrt(sum(x * x for x in full))
    z = tensors["1.proj.weight"] @ torch.tensor([x / length for x in full]) + tensors["1.proj.bias"]
    limits = torch.sigmoid(tensors["1.theta.weight"] @ z + tensors["1.theta.bias"]).tolist()
    both = [(a + b) / 2 for a, b in zip(own, cross, strict=True)]
    wanted = []
    for i in range(n):
        worth = (both[i] - min(both)) / (max(both) - min(both))
        row, column = divmod(int(slot[i]), 8)
        place = 0.25 if row % 2 == 0 and column % 2 == 0 else -1.0
        wanted.append(max(worth - limits[0], place - limits[1]) + 0.001 * worth)
    assert outcome["score"][0].tolist() == pytest.approx(wanted, abs=1e-5)
    assert torch.equal(outcome["slot"], slot[None])
    # a token half of which is dropped counts half
    half = torch.ones(1, n)
    half[0, 3] = 0.5
    assert not torch.equal(stage.rule({**signals, "alive": half}, {"slot": slot[None]})["score"], outcome["score"])


class TestCounts:
    def test_by_hand(self) -> None:
        trainee = heads(tokens=8)
        # 64 -> 8 by halves behind layers 0, 3 and 5 of 8
        assert trainee.planned == {"language.layers.0": 32, "language.layers.3": 16, "language.layers.5": 8}
        same = {"language.layers.0": 20.0, "language.layers.3": 10.0, "language.layers.5": 99.0}
        assert trainee.counts(same) == trainee.planned
        even = {"language.layers.0": 5.0, "language.layers.3": 5.0, "language.layers.5": 1.0}
        found = trainee.counts(even)
        assert 3 * found["language.layers.0"] + 2 * found["language.layers.3"] == 3 * 32 + 2 * 16
        assert found["language.layers.0"] - found["language.layers.3"] <= 2 and found["language.layers.5"] == 8

    @given(st.integers(1, 63), st.lists(st.floats(0, 64), min_size=3, max_size=3))
    def test_the_mean_over_layers_stays(self, tokens: int, alive: list[float]) -> None:
        trainee = heads(tokens=tokens)
        found = trainee.counts(dict(zip(trainee.planned, alive, strict=True)))
        spans = [3, 2, 2]  # layers behind each cut
        sums = [sum(n * c for n, c in zip(spans, counts.values(), strict=True)) for counts in (trainee.planned, found)]
        assert sums[0] == sums[1] and list(found.values())[-1] == tokens
        assert TOTAL >= list(found.values())[0] and sorted(found.values(), reverse=True) == list(found.values())

    def test_one_cut_has_no_choice(self) -> None:
        assert heads(layers=(2,)).counts({"language.layers.2": 50.0}) == {"language.layers.2": 16}

    def test_stages_keep_what_was_counted(self) -> None:
        method, trainee = ATPLlava(), heads()
        counts = {"language.layers.0": 50, "language.layers.3": 50, "language.layers.5": 16}
        stages = method.stages(geometry_of(), 16, Frozen(tensors=trainee.blank(), counts=counts))
        assert [(stage.site, stage.keep) for stage in stages] == [("language.layers.0", 50), ("language.layers.5", 16)]
        assert {stage.positions for stage in stages} == {"original"}
        # from an artifact, which names no cut that drops nothing
        named = {stage.site: stage.keep for stage in stages}
        again = method.stages(geometry_of(), 16, Frozen(tensors=trainee.blank(), counts=named))
        assert [(stage.site, stage.keep) for stage in again] == list(named.items())


def test_the_loss_by_hand() -> None:
    trainee = heads(tokens=8)
    alive = {site: torch.full((1, TOTAL), share) for site, share in zip(trainee.planned, (0.5, 0.25, 0.5), strict=True)}
    trial = Trial(divergence=torch.tensor(0.25), alive=alive, scores={})
    deep = 0.5 * 1 / 8 + 0.25 * 4 / 8 + 0.5 * 6 / 8
    off = abs((0.5 + 0.25 + 0.5) / 3 - (32 + 16 + 8) / 3 / 64)
    assert float(trainee.loss(trial)) == pytest.approx(0.25 + 0.05 * deep + 0.2 * off)


def test_gates_sharpen_and_thresholds_begin_low() -> None:
    score = torch.tensor([[0.1, -0.01]])
    torch.testing.assert_close(heads().gate(score, 1, 0.0), torch.sigmoid(torch.tensor([[1.0, -0.1]])))
    torch.testing.assert_close(heads().gate(score, 1, 1.0), torch.sigmoid(torch.tensor([[10.0, -1.0]])))
    assert heads().start(0)["1.theta.bias"].tolist() == [-2.0, -2.0]


@torch.no_grad()
def test_three_soft_cuts_become_three_hard_ones() -> None:
    """With steep gates as many tokens pass as the carved model keeps, and both say the same."""

    class Steep(ThresholdHeads):
        def gate(self, score: Tensor, keep: int, done: float) -> Tensor:
            return (score > 0).float()

    graphs = families.capture(build("llama", text_layers=LAYERS))
    question = Question(pixel_values=pictures(1, seed=4), before=(1, 5, 9), after=(20, 31, 42, 7))
    full = ask(graphs, question, 3)
    method = ATPLlava()
    trainee = Steep(method, graphs.geometry, 16)
    tensors = trainee.start(0)
    # places count less and less, importance more and more
    for i, (importance, place) in enumerate([(-1.5, -5.0), (-1.2, 5.0), (-0.9, 5.0)]):
        tensors[f"{i}.theta.bias"] = torch.tensor([importance, place])
    trial = try_out(graphs, lesson_of(graphs, question, full), trainee, tensors, done=1.0)
    counts = {site: int(alive.sum()) for site, alive in trial.alive.items()}
    assert TOTAL > counts["language.layers.0"] > counts["language.layers.3"] > counts["language.layers.5"] > 1
    frozen = Frozen(tensors=tensors, counts=counts)
    result = rewritten(graphs, method, counts["language.layers.5"], frozen)
    carved = ask(result.graphs, question, 3, full.tokens)
    wanted = likeness(full, carved, graphs.geometry.eos_token_ids).kl
    assert wanted > 1e-3 and float(trial.divergence) == pytest.approx(wanted, rel=5e-3)
    entered = torch.arange(TOTAL)[None]
    for site, kept in carved.read.kept.items():
        assert torch.equal(trial.alive[site].nonzero()[:, 1], entered[0, kept[0]])


@pytest.mark.parametrize("frozen", [None, Frozen(), Frozen(counts={"language.layers.0": 16})])
def test_without_training_it_is_refused(frozen: Frozen | None) -> None:
    with pytest.raises(MethodError, match="atp_llava scores with trained heads, .* pass --samples"):
        ATPLlava().stages(geometry_of(), 16, frozen)
    assert ATPLlava().stages(geometry_of(), TOTAL, frozen) == () and ATPLlava().trainable(geometry_of(), TOTAL) is None


@pytest.mark.parametrize("layers", [(3, 1), (0, 7), ()])
def test_layers_that_do_not_fit_are_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(MethodError, match="layer"):
        heads(layers=layers)


def budget(**params: Any) -> ATPLlava:
    return ATPLlava(form="budget", **params)


def signals_of(seed: int, n: int = TOTAL) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return {
        "visual_attention": torch.rand(1, n, n, generator=draw),
        "text_attention": torch.rand(1, 2, 3, n, generator=draw),
        "asked": torch.ones(1, 3),
    }


class TestBudget:
    @pytest.mark.parametrize("seed", range(8))
    def test_the_best_are_those_that_pass_either_threshold(self, seed: int) -> None:
        importance, place = 0.2 + 0.08 * seed, 0.2 if seed % 2 else 0.25
        signals = signals_of(seed)
        stage = budget(thresholds=(importance, place)).stages(geometry_of(), 8, None)[0]
        score = stage.rule(signals, {})["score"]
        seen = [
            (float(signals["visual_attention"][0, :, i].mean()) + float(signals["text_attention"][0, :, :, i].mean()))
            / 2
            for i in range(TOTAL)
        ]
        worth = [(one - min(seen)) / (max(seen) - min(seen)) for one in seen]
        grid = [i // 8 % 2 == 0 and i % 8 % 2 == 0 for i in range(TOTAL)]
        passing = [i for i in range(TOTAL) if worth[i] > importance or (grid[i] and place < 0.25)]
        assert 0 < len(passing) < TOTAL and top_in_order(score, len(passing))[0].tolist() == passing
        # of those who pass neither, at the neutral threshold of place the grid comes first
        if place == 0.25:
            rest = [i for i in range(TOTAL) if grid[i] and i not in passing]
            assert top_in_order(score, len(passing) + len(rest))[0].tolist() == sorted(passing + rest)

    @pytest.mark.parametrize("quantile", [None, 0.9])
    def test_the_threshold_meets_the_mean(self, quantile: float | None) -> None:
        method, geometry = budget(), geometry_of()
        decision = method.decides(geometry, 8, quantile)
        assert decision is not None
        draw = torch.Generator().manual_seed(3)
        falling = [
            [(torch.rand(TOTAL, generator=draw) ** (2 + cut + look)).tolist() for cut in range(3)] for look in range(5)
        ]
        settled, spread = decision.settle([Look(seen={"levels": one}) for one in falling])
        assert isinstance(settled, ATPLlava) and settled.thresholds is not None and settled.counts is not None
        importance, place = settled.thresholds
        spans, planned = [3, 2, 2], [32, 16, 8]

        def passing(limit: float) -> list[list[int]]:
            return [[sum(level > limit for level in cut) for cut in look] for look in falling]

        def mean(limit: float) -> float:
            return sum(sum(n * c for n, c in zip(spans, look, strict=True)) for look in passing(limit)) / 5

        wanted = sum(n * c for n, c in zip(spans, planned, strict=True))
        assert mean(importance) <= wanted < mean(importance - 1e-6) and place == 0.25
        # the first two counts as what passes there is divided, at the same sum over layers
        by_cut = [[look[cut] for look in passing(importance)] for cut in range(2)]
        ratio = [
            sum(one) / 5 if quantile is None else float(torch.tensor(one).double().quantile(0.9)) for one in by_cut
        ]
        first, second = settled.counts
        assert 3 * first + 2 * second == 3 * 32 + 2 * 16
        assert first / second == pytest.approx(ratio[0] / ratio[1], rel=0.1)
        assert spread["passing language.layers.0"] == [min(by_cut[0]), max(by_cut[0])]
        assert settled.decides(geometry, 8) is None
        assert [stage.keep for stage in settled.stages(geometry, 8, None)] == [first, second, 8]

    def test_a_quantile_divides_otherwise(self) -> None:
        looks = [
            Look(seen={"levels": [[1.0] * a + [0.1] * (TOTAL - a), [0.9] * b + [0.1] * (TOTAL - b), [0.9] * 8]})
            for a, b in ((20, 18), (60, 18))
        ]
        found = [budget(thresholds=(0.5, 0.25)).decides(geometry_of(), 8, one).settle(looks)[0] for one in (None, 1.0)]
        assert found[0].counts[0] < found[1].counts[0]

    def test_what_is_named_stays(self) -> None:
        look = [Look(seen={"levels": [torch.linspace(1, 0, TOTAL).tolist()] * 3})]
        counts = budget(counts=(50, 9)).decides(geometry_of(), 8)
        limits = budget(thresholds=(0.5, 0.1)).decides(geometry_of(), 8)
        assert counts is not None and limits is not None
        assert counts.settle(look)[0].counts == (50, 9)  # type: ignore[attr-defined]
        assert limits.settle(look)[0].thresholds == (0.5, 0.1)  # type: ignore[attr-defined]
        assert ATPLlava().decides(geometry_of(), 8) is None and budget().decides(geometry_of(), TOTAL) is None

    @pytest.mark.parametrize("counts", [(20,), (20, 30), (65, 30), (20, 7), (20, 10, 9)])
    def test_counts_that_cannot_be(self, counts: tuple[int, ...]) -> None:
        with pytest.raises(MethodError, match="must be 2 that never rise from 64 to 8"):
            budget(counts=counts).stages(geometry_of(), 8, None)


def test_a_level_by_hand() -> None:
    levels = [(0.5, 2.0), (0.9, 1.0), (0.1, 3.0)]
    assert [level_for(levels, budget) for budget in (0.0, 1.0, 2.9, 3.0, 5.9, 6.0)] == [0.9, 0.5, 0.5, 0.1, 0.1, -1.0]
