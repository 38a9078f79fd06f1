"""The frozen model with a method's stages made soft: no token leaves, attention to what would leave is damped.

As gates come near 0 and 1, this becomes the carved model. All rows stand in one pass: prompt, then the answer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tokcarve.passes import choose
from tokcarve.passes.asking import Question, Reply
from tokcarve.passes.errors import MethodError
from tokcarve.passes.graph import TokenGraphs, visual_start
from tokcarve.passes.stage import Signals, Stage
from tokcarve.passes.taps import TAPS, Tokens
from tokcarve.passes.text_blocks import causal_mask
from tokcarve.passes.text_taps import TEXT_TAPS, Place
from tokcarve.passes.trainee import Trainee, Trial

__all__ = ["Lesson", "frozen", "lesson_of", "shown", "try_out"]

LEAST = 1e-6
"""Added to a gate before its logarithm, so that a token that is dropped can come back."""


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """A question with what the full model says of it: ids int64 [1, prompt + answer - 1], the `length` of the prompt,
    features [1, n, hidden], and wanted [answer, vocab], logarithms of the full model's probabilities."""

    ids: Tensor
    length: int
    features: Tensor
    wanted: Tensor


def lesson_of(graphs: TokenGraphs, question: Question, full: Reply) -> Lesson:
    """From the reply of the unpruned model; rows behind a stop do not count."""
    stops = graphs.geometry.eos_token_ids
    end = next((i + 1 for i, token in enumerate(full.tokens) if token in stops), len(full.tokens))
    ids, length = question.prompt(graphs.geometry.image_token_id, graphs.geometry.total)
    return Lesson(
        ids=torch.cat([ids, torch.tensor([full.tokens[: end - 1]], dtype=ids.dtype)], dim=1),
        length=int(length),
        features=full.seen.features.detach(),
        wanted=torch.log_softmax(full.logits[:end].detach().float(), dim=1),
    )


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No gradient reaches the weights of `model` meanwhile."""
    loose = [weight for weight in model.parameters() if weight.requires_grad]
    for weight in loose:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        for weight in loose:
            weight.requires_grad_(True)


def try_out(
    graphs: TokenGraphs,
    lesson: Lesson,
    trainee: Trainee,
    tensors: Mapping[str, Tensor],
    *,
    done: float,
    positions: str = "renumbered",
) -> Trial:
    """What one sample shows of `tensors`, with gradients to them, after a share `done` of training; `positions` as a
    recipe has it for cuts before the language model."""
    run = _Run(graphs, lesson, trainee, done, positions)
    logits = run.read(trainee.stages(tensors))
    found = torch.log_softmax(logits[0, lesson.length - 1 :].float(), dim=1)
    apart = (lesson.wanted.exp() * (lesson.wanted - found)).sum(dim=1).mean()
    taught = None if trainee.teacher is None else shown(graphs, lesson, [trainee.teacher])[0]
    return Trial(divergence=apart, alive=run.left, scores=run.scores, taught=taught)


@torch.no_grad()
def shown(graphs: TokenGraphs, lesson: Lesson, teachers: Sequence[tuple[str, str]]) -> list[Tensor]:
    """What the unpruned model shows of a lesson at taps, each (site, tap) behind a language layer, in one pass."""
    return _Run(graphs, lesson, None, 1.0, "original").look(teachers)


@dataclass
class _Run:
    """One pass through the language model; `alive` [1, n] says how much of every visual token is left by now, `hard`
    which the carved model would still have."""

    graphs: TokenGraphs
    lesson: Lesson
    trainee: Trainee | None
    done: float
    positions: str
    left: dict[str, Tensor] = field(default_factory=dict)
    scores: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lesson, graphs = self.lesson, self.graphs
        self.start = visual_start(lesson.ids, graphs.geometry.image_token_id)
        self.lengths = torch.tensor([lesson.length])
        self.hidden, self.places = graphs.embedding(lesson.ids, lesson.features)
        self.entry = self.hidden
        self.alive = torch.ones(1, lesson.features.shape[1])
        self.hard = self.alive.bool()
        self.carry: dict[str, Tensor] = {}

    def read(self, stages: Sequence[Stage]) -> Tensor:
        """Logits [1, rows, vocab] under the stages."""
        waiting = {stage.site: stage for stage in stages}
        if "connector" in waiting:
            self._reach(waiting.pop("connector"), self._seen)
        for layer in range(len(self.graphs.parts.text_blocks)):
            before, tables = self._step(layer)
            stage = waiting.pop(f"language.layers.{layer}", None)
            if stage is not None:
                bias = self._bias()
                self._reach(stage, lambda name: self._heard(name, layer, before, tables, bias))  # noqa: B023
        if waiting:
            raise MethodError(f"a stage at {next(iter(waiting))} has no soft form; train one behind the connector")
        logits: Tensor = self.graphs.parts.head(self.graphs.parts.norm(self.hidden))
        return logits

    def look(self, wanted: Sequence[tuple[str, str]]) -> list[Tensor]:
        """What taps show behind layers, (site, tap) each."""
        asked = [(int(site.split(".")[2]), tap) for site, tap in wanted]
        found = dict[tuple[int, str], Tensor]()
        for layer in range(max(layer for layer, _ in asked) + 1):
            before, tables = self._step(layer)
            found |= {one: self._heard(one[1], layer, before, tables, None) for one in asked if one[0] == layer}
        return [found[one] for one in asked]

    def _step(self, layer: int) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Runs a layer; what entered it, and its RoPE tables."""
        parts, before = self.graphs.parts, self.hidden
        cos, sin = parts.rotary(before, self.places)
        seen = causal_mask(before, self.graphs.geometry.text.sliding_window)
        # every row sees itself whole
        damped = self._bias() * (1 - torch.eye(before.shape[1]))
        mask = torch.where(seen, damped, torch.finfo(torch.float32).min).to(before.dtype)
        mask = mask.clamp_min(torch.finfo(before.dtype).min)
        self.hidden = parts.text_blocks[layer](before, mask, cos, sin)[0]
        return before, (cos, sin)

    def _bias(self) -> Tensor:
        """What damps attention to every row: [1, 1, 1, rows]."""
        log = torch.log(self.alive + LEAST)
        before, rows = int(self.start), self.hidden.shape[1]
        text = torch.zeros(1, 1)
        parts = [text.expand(1, before), log, text.expand(1, rows - before - log.shape[1])]
        return torch.cat(parts, dim=1).view(1, 1, 1, rows)

    def _reach(self, stage: Stage, tap: Callable[[str], Tensor]) -> None:
        """A stage's rule, and what its gate leaves."""
        signals: Signals = {"alive": self.alive} | {name: tap(name) for name in stage.reads}
        outcome = stage.rule(signals, self.carry)
        self.carry = {name: outcome[name] for name in stage.carries} or self.carry
        if stage.how == "observe":
            return
        if stage.how != "choose" or self.trainee is None:
            raise MethodError(f"a stage that does {stage.how} at {stage.site} has no soft form; train one that chooses")
        score = outcome["score"]
        self.alive = self.alive * self.trainee.gate(score, stage.keep, self.done)
        best = choose.top_in_order(score.detach(), stage.keep, self.hard)
        self.hard = choose.one_hot(best, score.shape[1]).sum(dim=1) > 0
        self.left[stage.site], self.scores[stage.site] = self.alive, score
        if (self.positions if stage.site == "connector" else stage.positions) == "renumbered":
            here = torch.ones_like(self.lesson.ids)
            at = int(self.start)
            here[:, at : at + self.hard.shape[1]] = self.hard.long()
            self.places = (here.cumsum(dim=1) - 1).clamp_min(0)

    def _seen(self, name: str) -> Tensor:
        """A tap of the vision graph behind the connector."""
        tap, parts = TAPS[name], self.graphs.parts
        if tap.source == "prompt":
            made = tap.made_of(parts.embed_tokens, self.graphs.geometry.image_token_id)
            with torch.no_grad():
                found: Tensor = made(self.lesson.ids, self.lengths)
            return found
        rows: Tensor = Tokens(0)(self.lesson.features)
        return rows

    def _heard(
        self, name: str, layer: int, before: Tensor, tables: tuple[Tensor, Tensor], bias: Tensor | None
    ) -> Tensor:
        """A tap of the language model at the site behind `layer`."""
        tap, parts = TEXT_TAPS[name], self.graphs.parts
        assert tap.made_of is not None
        block = parts.text_blocks[layer + (tap.source == "next")]
        made = tap.made_of(block, Place(count=self.alive.shape[1], dropped=0), parts.norm)
        made.bias = bias
        rows = {"layer": before, "entry": self.entry}.get(tap.source, self.hidden)
        found: Tensor = made(rows, *tables, self.start, self.lengths)
        return found
