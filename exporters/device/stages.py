"""One side of a face as ways to be timed: every stage alone, and whole answers through all of them.

The prompt is made up and full (`probe`): graphs of fixed shapes cost the same for any. A decode sample is the mean of
some steps in a row, each of which feeds what the one before said, because that is how answers are made. The first step
behind another graph's run finds its weights further away and takes a multiple of the others; it is run and not counted,
else a mean of few steps would promise too long answers.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import perf_counter

import numpy as np

from tokcarve.exporters.device.pipeline import Pipeline, greedy
from tokcarve.exporters.device.probe import probe
from tokcarve.exporters.device.rounds import Way, timed
from tokcarve.exporters.device.session import Array

__all__ = ["STAGES", "Stages", "answer_name"]

STAGES = ("encoder", "embedding", "prefill", "cache", "decode")
"""In the order of an answer; "cache" puts what prefill gave into the buffers that decode reads."""
_IN_A_ROW = 16


def answer_name(new: int) -> str:
    """What a way calls the time at which the token number `new` of an answer was there."""
    return f"answer.{new}"


class Stages:
    """The stages of one side; `way` of each needs those before it, `answer` needs none."""

    def __init__(self, pipeline: Pipeline, answers: Sequence[int]) -> None:
        self.pipeline, self.answers = pipeline, frozenset(answers)
        self.asked = probe(pipeline)
        # an export that holds one new token has room for the first step alone
        self.steps = range(1, pipeline.record.max_new)[:_IN_A_ROW] or range(1)
        self.embedded: Mapping[str, Array] = {}
        self._made: Mapping[str, Array] = {}

    @property
    def prefill_feeds(self) -> dict[str, Array]:
        """What the prefill graph is given, once the way of `embedding` was made."""
        return {**self.embedded, "prompt_lengths": self.asked[2]}

    def way(self, stage: str) -> Way:
        """The way of one of STAGES; it was run once here, for what the next one reads."""
        side, (pixels, ids, lengths) = self.pipeline, self.asked
        if stage == "decode":
            return self._decode()
        run: Callable[[], Mapping[str, Array]]
        if stage == "encoder":
            run = partial(side.vision, pixels, ids, lengths)
        elif stage == "embedding":
            run = partial(side.embed, ids, self._made)
        elif stage == "prefill":
            self.embedded = self.with_state(self._made)
            run = self._prefill
        else:
            run = partial(side.cache, self._made)
        made = run()
        self._made = made if stage != "cache" else self._made
        return timed(stage, lambda _: run())

    def _prefill(self) -> Mapping[str, Array]:
        made = self.pipeline.prefill(self.embedded, self.asked[2])
        greedy(made["logits"])
        return made

    def with_state(self, embedded: Mapping[str, Array]) -> dict[str, Array]:
        """Ones for what a method would have gathered from image to image."""
        graph = self.pipeline.graph("prefill")
        known = {*embedded, "prompt_lengths"}
        state = {name: np.ones(graph.shapes[name], graph.types[name]) for name in graph.shapes if name not in known}
        return {**embedded, **state}

    def _decode(self) -> Way:
        first, cache = greedy(self._made["logits"]), self.pipeline.cache(self._made)

        def way(_: int) -> Mapping[str, float]:
            latest = greedy(self.pipeline.step(first, self.asked[2], 0, cache)["logits"])
            started = perf_counter()
            for step in self.steps:
                latest = greedy(self.pipeline.step(latest, self.asked[2], step, cache)["logits"])
            return {"decode": (perf_counter() - started) * 1000 / len(self.steps)}

        way(0)
        return way

    def answer(self, _: int) -> Mapping[str, float]:
        """A way: the milliseconds from pixels and token ids to token 1, and to every other of `answers`."""
        side, (pixels, ids, lengths) = self.pipeline, self.asked
        started, found = perf_counter(), dict[str, float]()
        prefilled = side.prefill(self.with_state(side.embed(ids, side.vision(pixels, ids, lengths))), lengths)
        latest = greedy(prefilled["logits"])
        found[answer_name(1)] = (perf_counter() - started) * 1000
        if (longest := max(self.answers)) == 1:
            return found
        cache = side.cache(prefilled)
        for step in range(longest - 1):
            latest = greedy(side.step(latest, lengths, step, cache)["logits"])
            if step + 2 in self.answers:
                found[answer_name(step + 2)] = (perf_counter() - started) * 1000
        return found
