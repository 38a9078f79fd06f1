"""One question put to a model in torch: greedy, or answering in given words; no padding, growing caches.

What the exported graphs are compared with, and how calibration tells how far a carved model is from the full one.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tokcarve.passes.graph import Read, Seen, TokenGraphs, visual_start

__all__ = ["Likeness", "Question", "Reply", "ask", "likeness", "surprise"]


@dataclass(frozen=True, kw_only=True)
class Question:
    """pixel_values float32 [1, 3, side, side]; before, after: text ids on both sides of the image, unpadded; state
    [1, visual tokens] by name: what a method expects of whoever runs it."""

    pixel_values: Tensor
    before: tuple[int, ...]
    after: tuple[int, ...]
    state: Mapping[str, Tensor] = field(default_factory=dict)

    def ids(self, image_token_id: int, tokens: int) -> list[int]:
        """The prompt with `tokens` image tokens."""
        return [*self.before, *[image_token_id] * tokens, *self.after]

    def prompt(self, image_token_id: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Ids int64 [1, rows] of that prompt, and how many rows it has, int64 [1]."""
        ids = torch.tensor([self.ids(image_token_id, tokens)])
        return ids, torch.tensor([ids.shape[1]])


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a model says: seen and read as the graphs gave them; logits [new, vocab] of the last prompt row and of every
    row decoded; hidden [hidden] of the last prompt row behind the final norm; given [new, ...] by name."""

    seen: Seen
    read: Read
    logits: Tensor
    hidden: Tensor
    given: Mapping[str, Tensor]

    @property
    def tokens(self) -> list[int]:
        """The best token of every row."""
        return [int(token) for token in self.logits.argmax(dim=1)]


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """How near a carved model is to the full one on one question.

    kl: mean over the first answer tokens of the divergence from the full model's distribution, in nats; same: whether
    it would have said the same tokens; cosine: of the hidden states of the last prompt row.
    """

    kl: float
    same: bool
    cosine: float


@torch.no_grad()
def ask(
    graphs: TokenGraphs,
    question: Question,
    new: int,
    said: Sequence[int] | None = None,
    seen: Seen | None = None,
    stops: Sequence[int] = (),
) -> Reply:
    """`new` rows of an answer to one question, or as many as end with the first of `stops`; each row is fed the best
    token of the row before it, or with `said` the token that was said there. `seen`: what the vision graph gave, where
    it ran before."""
    image = graphs.geometry.image_token_id
    seen = seen if seen is not None else graphs.see(question.pixel_values, *question.prompt(image, 1))
    ids, length = question.prompt(image, seen.features.shape[1])
    with _overheard(graphs.parts.norm) as hidden:
        read, positions = graphs.read(ids, seen, length, question.state)
    keys, values = read.keys, read.values
    rows, given = [read.logits[0, -1]], [read.given]
    start = visual_start(ids, image)
    for step in range(new - 1):
        latest = rows[-1].argmax() if said is None else torch.tensor(said[step])
        if int(latest) in stops:
            break
        position = positions[:, -1:] + 1 + step
        made = graphs.step(latest.view(1, 1), position, length, step, (keys, values), step, start)
        keys = [torch.cat(pair, dim=2) for pair in zip(keys, made.keys, strict=True)]
        values = [torch.cat(pair, dim=2) for pair in zip(values, made.values, strict=True)]
        rows.append(made.logits[0, -1])
        given.append(made.given)
    return Reply(
        seen=seen,
        read=read,
        logits=torch.stack(rows),
        hidden=hidden[0][0, -1],
        given={name: torch.cat([one[name] for one in given]) for name in given[0]},
    )


def likeness(full: Reply, carved: Reply, stops: Sequence[int]) -> Likeness:
    """Of two replies to one question, the second made to say what the first says; rows behind a stop do not count."""
    end = _end(full, stops)
    wanted, found = (torch.log_softmax(one.logits[:end].double(), dim=1) for one in (full, carved))
    divergence = (wanted.exp() * (wanted - found)).sum(dim=1).clamp_min(0)
    cosine = torch.nn.functional.cosine_similarity(full.hidden.double(), carved.hidden.double(), dim=0)
    return Likeness(
        kl=float(divergence.mean()), same=full.tokens[:end] == carved.tokens[:end], cosine=float(cosine.clamp(-1, 1))
    )


def surprise(full: Reply, one: Reply, stops: Sequence[int]) -> float:
    """The cross-entropy, in nats per token, of what `full` says under `one`, which was made to say it."""
    said = full.tokens[: _end(full, stops)]
    sure = torch.log_softmax(one.logits[: len(said)].double(), dim=1)
    return float(-sure[torch.arange(len(said)), torch.tensor(said)].mean())


def _end(reply: Reply, stops: Sequence[int]) -> int:
    """How many rows of a reply count: the first stop is the last of them."""
    return next((i + 1 for i, token in enumerate(reply.tokens) if token in stops), len(reply.tokens))


@contextmanager
def _overheard(module: nn.Module) -> Iterator[list[Tensor]]:
    """What a module returns meanwhile."""
    heard = list[Tensor]()
    handle = module.register_forward_hook(lambda _module, _inputs, made: heard.append(made))
    try:
        yield heard
    finally:
        handle.remove()
