"""Several turns of text about one image: what was said stays in the caches, and a new turn is fed row by row.

What is kept of the image is chosen once, with the first question; later questions attend to the same visual tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from tokcarve.exporters.device.answer import Answerer
from tokcarve.exporters.device.pipeline import Ids, greedy
from tokcarve.passes.inputs.prompt import Prompter, PromptError

__all__ = ["Conversation", "OrtVoice", "Turn", "Voice", "converse"]


@runtime_checkable
class Voice(Protocol):
    """A model that has seen an image and remembers what was said; `room` is how many rows its caches can still take,
    `kept` the patch ids that are left of the image once it began."""

    room: int
    kept: Ids

    def begin(self, ids: list[int]) -> int:
        """The best token behind a prompt, given as ids with the image in it."""

    def say(self, token: int) -> int:
        """The best token behind everything so far and `token`, which takes a row."""


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One answer: greedy tokens (a stop token, if one came, is the last) and their text."""

    tokens: tuple[int, ...]
    text: str


class OrtVoice:
    """One side of an exported face of batch 1, about one image."""

    def __init__(self, answerer: Answerer, image: Image.Image) -> None:
        if answerer.record.batch != 1 or answerer.asks:
            raise PromptError("a conversation is about one image: export for batch 1, and a method without a state")
        self.pipeline, self.record = answerer.pipeline, answerer.record
        self.pixels = answerer.images([image])
        self.room = answerer.record.max_new
        self.kept: Ids = np.empty(0, np.int64)

    def begin(self, ids: list[int]) -> int:
        """As `Voice.begin`; PromptError for a prompt longer than was exported."""
        tokens = self.pipeline.side.tokens
        if len(ids) - tokens > self.record.max_text:
            raise PromptError(
                f"the prompt has {len(ids) - tokens} tokens besides the image, and this export holds "
                f"{self.record.max_text}; shorten it, or export again with `tokcarve export --max-text "
                f"{len(ids) - tokens}`"
            )
        padded = np.full((1, self.record.max_text + tokens), self.record.geometry.pad_token_id, np.int64)
        padded[0, : len(ids)] = ids
        self.lengths: Ids = np.array([len(ids)], np.int64)
        seen = self.pipeline.vision(self.pixels, padded, self.lengths)
        first = self.pipeline.prefill(self.pipeline.embed(padded, seen), self.lengths)
        self.kept = self.pipeline.kept(seen, first)[0]
        self.cache = self.pipeline.cache(first)
        return int(greedy(first["logits"])[0, 0])

    def say(self, token: int) -> int:
        """As `Voice.say`."""
        step = self.record.max_new - self.room
        made = self.pipeline.step(np.array([[token]], np.int64), self.lengths, step, self.cache)
        self.room -= 1
        return int(greedy(made["logits"])[0, 0])


def converse(
    artifact: Path, image: Image.Image, threads: int | None = None, budget: int | None = None
) -> tuple[str, "Conversation"]:
    """A conversation about `image` through the exported graphs of `artifact`, of one budget of a set, and where they
    run."""
    answerer = Answerer(artifact, threads=threads, budget=budget)
    stops = answerer.record.geometry.eos_token_ids
    talk = Conversation(answerer.prompter, OrtVoice(answerer, image), stops, answerer.side.tokens)
    return answerer.provider, talk


class Conversation:
    """Questions about one image, one after the other; `image_tokens` enter the language model."""

    def __init__(self, prompter: Prompter, voice: Voice, stops: tuple[int, ...], image_tokens: int) -> None:
        self.prompter, self.voice, self.stops, self.image_tokens = prompter, voice, stops, image_tokens
        self.said: list[tuple[str, str]] = []
        self.unsaid: list[int] = []  # a token that was chosen and is in no cache yet

    def ask(self, prompt: str, max_new: int, on_token: Callable[[int, int], None] | None = None) -> Turn:
        """Up to `max_new` tokens; PromptError for a turn that does not fit into the caches, before anything is fed."""
        if max_new < 1:
            raise PromptError(f"max_new={max_new} asks for no answer; give 1 or more")
        if not self.said:
            latest = self.voice.begin(self.prompter.encode(prompt, self.image_tokens))
        else:
            fed = [*self.unsaid, *self.prompter.encode_turn(self.said, prompt)]
            needed = len(fed) + max_new - 1
            if needed > self.voice.room:
                raise PromptError(
                    f"turn {len(self.said) + 1} takes up to {needed} rows of the caches, and {self.voice.room} are "
                    "left; ask for fewer tokens, or export again with a larger --max-new"
                )
            for token in fed:
                latest = self.voice.say(token)
        tokens = [latest]
        while len(tokens) < max_new and tokens[-1] not in self.stops and self.voice.room:
            if on_token is not None:
                on_token(0, tokens[-1])
            tokens.append(self.voice.say(tokens[-1]))
        self.unsaid = [] if tokens[-1] in self.stops else tokens[-1:]
        text = self.prompter.decode(tokens)
        self.said.append((prompt, text))
        return Turn(tokens=tuple(tokens), text=text)
