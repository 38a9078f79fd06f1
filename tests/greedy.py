"""Greedy decoding through token graphs, written from the contract of the graphs alone: an oracle for tests."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tokcarve.passes.graph import Seen, TokenGraphs, visual_start

__all__ = ["answer", "at_last_row"]


def at_last_row(logits: Tensor, lengths: Tensor) -> Tensor:
    """Logits [batch, rows, vocab] of each prompt's last real row -> [batch, vocab]."""
    return logits[torch.arange(logits.shape[0]), lengths - 1]


@torch.no_grad()
def answer(
    graphs: TokenGraphs,
    seen: Seen | Tensor,
    input_ids: Tensor,
    lengths: Tensor,
    steps: int,
    *,
    room: int | None = None,
    banned: Sequence[int] = (),
    given: dict[str, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits [batch, vocab] after the prompt and `steps` greedy tokens [batch, steps].

    `room`: rows beyond the prompt of caches of fixed size; None lets the caches grow by a row a step.
    """
    seen = Seen(seen, {}) if isinstance(seen, Tensor) else seen
    read, entered = graphs.read(input_ids, seen, lengths, given)
    start = visual_start(input_ids, graphs.geometry.image_token_id)
    keys, values = read.keys, read.values
    first = score = at_last_row(read.logits, lengths - (input_ids.shape[1] - read.logits.shape[1]))
    end = torch.gather(entered, 1, lengths.unsqueeze(1) - 1)
    tokens: list[Tensor] = []
    rows = [key.shape[2] for key in keys]
    if room is not None:
        keys, values = ([torch.nn.functional.pad(c, (0, 0, 0, room)) for c in caches] for caches in (keys, values))
    for step in range(steps):
        score = score.index_fill(1, torch.tensor(banned, dtype=torch.long), -torch.inf)
        tokens.append(score.argmax(dim=1, keepdim=True))
        capacity = step if room is None else room
        positions = end + 1 + step
        made = graphs.step(tokens[-1], positions, lengths, step, (keys, values), capacity, start)
        score, new_keys, new_values = made.logits[:, -1], made.keys, made.values
        for caches, new in ((keys, new_keys), (values, new_values)):
            for layer, row in enumerate(new):
                if room is None:
                    caches[layer] = torch.cat([caches[layer], row], dim=2)
                else:
                    caches[layer][:, :, rows[layer] + step] = row[:, :, 0]
    return first, torch.cat(tokens, dim=1)
