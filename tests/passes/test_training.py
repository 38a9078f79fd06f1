"""The soft form of stages: gates by hand, what it becomes when they are 0 and 1, and where gradients go."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models import IMAGE, TOTAL, build, pictures
from torch import Tensor

from tokcarve.passes import families
from tokcarve.passes.asking import Question, Reply, ask, likeness
from tokcarve.passes.choose import top_in_order, top_mask
from tokcarve.passes.errors import MethodError
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.methods.atp_llava import ATPLlava
from tokcarve.passes.methods.covipal import CoViPAL
from tokcarve.passes.methods.dyvte import DyVTE
from tokcarve.passes.methods.vtc_cls import VtcCls
from tokcarve.passes.stage import Frozen, Method, Stage
from tokcarve.passes.trainee import Trainee, Trial, sharp
from tokcarve.passes.training import Lesson, frozen, lesson_of, shown, try_out
from tokcarve.recipes.carve import rewritten

QUESTION = Question(pixel_values=pictures(1, seed=4), before=(1, 5, 9), after=(20, 31, 42, 7))
NEW = 3


def graphs_of(text_layers: int = 4) -> TokenGraphs:
    return families.capture(build("llama", text_layers=text_layers))


def taught(graphs: TokenGraphs) -> tuple[Reply, Lesson]:
    full = ask(graphs, QUESTION, NEW)
    return full, lesson_of(graphs, QUESTION, full)


class Switch(Trainee):
    """Any method's stages, with gates that are 0 or 1."""

    def __init__(self, method: Method, graphs: TokenGraphs, tokens: int) -> None:
        super().__init__(method, graphs.geometry, tokens)
        made = method.trainable(graphs.geometry, tokens)
        self.shapes = {} if made is None else made.shapes

    def gate(self, score: Tensor, keep: int, done: float) -> Tensor:
        return top_mask(score, keep).float()

    def loss(self, trial: Trial) -> Tensor:
        return trial.divergence


class TestSharp:
    @given(st.integers(0, 99), st.integers(1, 11), st.sampled_from([0.1, 1.0, 30.0]))
    def test_gates_sum_to_the_count(self, seed: int, keep: int, scale: float) -> None:
        score = torch.randn(2, 12, generator=torch.Generator().manual_seed(seed))
        gates = sharp(score, keep, scale)
        assert gates.min() >= 0 and gates.max() <= 1
        torch.testing.assert_close(gates.sum(dim=1), torch.full((2,), float(keep)), atol=1e-3, rtol=0)

    def test_they_become_the_best(self) -> None:
        score = torch.randperm(12, generator=torch.Generator().manual_seed(0)).float().view(1, 12)
        torch.testing.assert_close(sharp(score, 5, 1000.0), top_mask(score, 5).float(), atol=1e-3, rtol=0)

    def test_by_hand(self) -> None:
        # equal scores share the count; tokens at 0 and 2 with one of them to keep lie evenly about the level 1
        torch.testing.assert_close(sharp(torch.zeros(1, 4), 1, 3.0), torch.full((1, 4), 0.25))
        torch.testing.assert_close(
            sharp(torch.tensor([[0.0, 2.0]]), 1, 1.0), torch.sigmoid(torch.tensor([[-1.0, 1.0]]))
        )

    def test_gradients_are_those_of_differences(self) -> None:
        score = torch.randn(1, 6, generator=torch.Generator().manual_seed(1))
        weight = torch.arange(6.0)
        leaf = score.clone().requires_grad_()
        (slope,) = torch.autograd.grad((sharp(leaf, 2, 1.5) * weight).sum(), leaf)
        for i in range(6):
            step = torch.zeros(1, 6)
            step[0, i] = 1e-2
            up, down = ((sharp(score + sign * step, 2, 1.5) * weight).sum() for sign in (1, -1))
            assert float(slope[0, i]) == pytest.approx(float(up - down) / 2e-2, abs=2e-3)


class TestLesson:
    def test_it_ends_with_the_answer(self) -> None:
        graphs = graphs_of()
        full, lesson = taught(graphs)
        said = full.tokens
        assert lesson.ids[0].tolist() == [*QUESTION.before, *[IMAGE] * TOTAL, *QUESTION.after, *said[:-1]]
        assert lesson.length == len(QUESTION.before) + TOTAL + len(QUESTION.after)
        torch.testing.assert_close(lesson.wanted.exp().sum(dim=1), torch.ones(NEW))

    def test_nothing_counts_behind_a_stop(self) -> None:
        graphs = graphs_of()
        full, _ = taught(graphs)
        stop = graphs.geometry.eos_token_ids[0]
        logits = full.logits.clone()
        logits[1, stop] = 1e4
        ended = Reply(seen=full.seen, read=full.read, logits=logits, hidden=full.hidden, given={})
        lesson = lesson_of(graphs, QUESTION, ended)
        assert lesson.wanted.shape[0] == 2 and lesson.ids[0, lesson.length :].tolist() == full.tokens[:1]


@pytest.mark.parametrize("positions", ["renumbered", "original"])
@pytest.mark.parametrize("method", [CoViPAL(blocks=1), ATPLlava(layers=(1,))])
def test_with_hard_gates_it_is_the_carved_model(method: Method, positions: str) -> None:
    graphs = graphs_of()
    full, lesson = taught(graphs)
    trainee = Switch(method, graphs, 16)
    tensors = trainee.start(3)
    with torch.no_grad():
        trial = try_out(graphs, lesson, trainee, tensors, done=1.0, positions=positions)
    result = rewritten(graphs, method, 16, Frozen(tensors=tensors), positions)
    carved = ask(result.graphs, QUESTION, NEW, full.tokens)
    wanted = likeness(full, carved, graphs.geometry.eos_token_ids).kl
    assert wanted > 0.01, "the cut must change what is said"
    assert float(trial.divergence) == pytest.approx(wanted, rel=2e-3)
    (site,) = trial.alive
    kept = {**carved.seen.kept, **carved.read.kept}[site]
    assert torch.equal(top_in_order(trial.alive[site], 16), kept)


def test_whoever_drops_nothing_is_the_full_model() -> None:
    class Open(Switch):
        def gate(self, score: Tensor, keep: int, done: float) -> Tensor:
            return torch.ones_like(score)

    graphs = graphs_of()
    trainee = Open(CoViPAL(blocks=1), graphs, 16)
    with torch.no_grad():
        trial = try_out(graphs, taught(graphs)[1], trainee, trainee.start(0), done=0.0, positions="original")
    assert abs(float(trial.divergence)) < 1e-5


@pytest.mark.parametrize("method", [CoViPAL(blocks=1), ATPLlava(layers=(0, 1, 2))])
def test_gradients_reach_the_module_alone(method: Method) -> None:
    graphs = graphs_of()
    model = build("llama", text_layers=4)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trainee = method.trainable(graphs.geometry, 16)
    assert trainee is not None
    tensors = {name: one.requires_grad_() for name, one in trainee.start(0).items()}
    with frozen(model):
        assert not any(weight.requires_grad for weight in model.parameters())
        trainee.loss(try_out(graphs, taught(graphs)[1], trainee, tensors, done=0.5)).backward()
    assert all(weight.requires_grad and weight.grad is None for weight in model.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert all(one.grad is not None and one.grad.isfinite().all() for one in tensors.values())
    assert sum(bool(one.grad.any()) for one in tensors.values() if one.grad is not None) == len(tensors)


@torch.no_grad()
def test_what_is_dropped_once_stays_dropped() -> None:
    graphs = graphs_of()
    trainee = ATPLlava(layers=(0, 1, 2)).trainable(graphs.geometry, 16)
    assert trainee is not None
    trial = try_out(graphs, taught(graphs)[1], trainee, trainee.start(0), done=0.0)
    left = torch.ones(1, TOTAL)
    for site, score in trial.scores.items():
        left = left * trainee.gate(score, 16, 0.0)
        torch.testing.assert_close(trial.alive[site], left)
    assert left.max() < 1


def test_the_teacher_is_the_unpruned_model() -> None:
    graphs = graphs_of()
    full, lesson = taught(graphs)
    trainee = CoViPAL(blocks=1, guide_layer=2).trainable(graphs.geometry, 16)
    assert trainee is not None
    tensors = trainee.start(0)
    with torch.no_grad():
        shown = try_out(graphs, lesson, trainee, tensors, done=1.0).taught
        again = try_out(graphs, lesson, trainee, trainee.start(5), done=0.0).taught
    assert shown is not None and again is not None and torch.equal(shown, again)
    # four heads; the answer's rows are no text of the prompt
    places = lesson.ids.shape[1] - TOTAL
    assert shown.shape == (1, 4, places, TOTAL)
    assert shown.sum(dim=(1, 3))[0].nonzero().flatten().tolist() == list(range(len(QUESTION.after)))


def test_several_teachers_show_what_each_shows_alone() -> None:
    graphs = graphs_of()
    lesson = taught(graphs)[1]
    asked = [
        (f"language.layers.{layer}", tap)
        for layer, tap in ((2, "text_attention"), (0, "visual_keys"), (2, "visual_keys"))
    ]
    alone = [shown(graphs, lesson, [one])[0] for one in asked]
    assert all(torch.equal(one, two) for one, two in zip(shown(graphs, lesson, asked), alone, strict=True))
    assert not torch.equal(alone[1], alone[2])


class Bad(Switch):
    def stages(self, tensors: Mapping[str, Tensor]) -> tuple[Stage, ...]:
        return self.method.stages(self.geometry, self.tokens, None)


@pytest.mark.parametrize(
    ("method", "tokens", "said"),
    [(VtcCls(layers=1), 16, "vision.layers.4 has no soft form"), (DyVTE(layer=1), TOTAL, "does exit at")],
)
def test_what_has_no_soft_form_is_refused(method: Any, tokens: int, said: str) -> None:
    graphs = graphs_of()
    with pytest.raises(MethodError, match=said):
        try_out(graphs, taught(graphs)[1], Bad(method, graphs, tokens), {}, done=0.0)
