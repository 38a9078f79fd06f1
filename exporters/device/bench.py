"""The measuring itself: every stage of both sides of a face, and whole answers, in turn."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from tokcarve.exporters.device.pipeline import Pipeline
from tokcarve.exporters.device.rounds import Effort, Samples, Taken, Way, take_rounds
from tokcarve.exporters.device.session import Face
from tokcarve.exporters.device.stages import STAGES, Stages
from tokcarve.exporters.device.timing import node_share

__all__ = ["Bench", "Tick"]

Tick = Callable[[str, int, int], None]
"""Called with (what is being measured, how much of it is done, how much there may be)."""
_BRIEF = frozenset(("embedding", "cache"))
"""Stages that look up and copy, in microseconds: measured, and not waited for until they are known to a few percent."""
_RELOADED = 3


class Bench:
    """One measurement of a face.

    Where the memory holds the graphs of both sides (`together`), a round is every stage of both and one answer of each,
    so that all figures are of the same minutes. Where it does not, stages are loaded, timed and let go one after the
    other, and answers are measured three times per side, with graphs loaded anew.

    samples: milliseconds (pruned, unpruned) of every stage and of answers by `answer_name`; rounds and stopped: of
    every sample, how many there are and why no more; shares: selection's part of the pruned vision and prefill graphs,
    in 0..1; load: of the machine before anything ran; provider: where the language model ran, fell_back: whether a GPU
    was wanted there and did not start.
    """

    def __init__(
        self,
        face: Face,
        *,
        effort: Effort,
        answers: Sequence[int],
        together: bool,
        budget: int | None = None,
    ) -> None:
        self.face, self.effort, self.together = face, effort, together
        self.tick: Tick = lambda what, done, total: None
        pipelines = Pipeline(face, baseline=False, budget=budget), Pipeline(face, baseline=True)
        self.sides = tuple(Stages(pipeline, answers) for pipeline in pipelines)
        self.samples: dict[str, Samples] = {}
        self.rounds: dict[str, int] = {}
        self.stopped: dict[str, str] = {}
        self.shares: dict[str, float] = {"vision": 0.0, "prefill": 0.0}
        self.provider, self.fell_back, self._chooses = "", False, False

    def run(self, tick: Tick) -> None:
        """Fills everything; `tick` is called after every round. Raises ExportError if a graph does not load."""
        self.tick = tick
        if self.together:
            stages = [self._pair(stage) for stage in STAGES]
            self._look()
            self._take("stages and answers", [*stages, (self.sides[0].answer, self.sides[1].answer)], self.effort)
        else:
            for stage in STAGES:
                self._take(stage, [self._pair(stage)], self.effort)
                if stage == "prefill":
                    self._look()
                if stage != "cache":
                    self._release()
            few = replace(self.effort, repeats=min(self.effort.repeats or _RELOADED, _RELOADED), warm_up=0)
            self._take("answers", [(self._reloading(0), self._reloading(1))], few)
        self._release()
        self._share("vision")
        if self._chooses:
            self._share("prefill")

    def _pair(self, stage: str) -> tuple[Way, Way]:
        pruned, unpruned = (side.way(stage) for side in self.sides)
        return pruned, unpruned

    def _look(self) -> None:
        """What only a loaded prefill graph can tell."""
        prefill = self.sides[0].pipeline.graph("prefill")
        self.provider, self.fell_back = prefill.provider, prefill.fell_back
        self._chooses = any(name.startswith("kept_indices.") for name in prefill.outputs)

    def _take(self, what: str, pairs: Sequence[tuple[Way, Way]], effort: Effort) -> None:
        taken: Taken = take_rounds(
            pairs,
            effort,
            watched=lambda name: name not in _BRIEF,
            tick=partial(self.tick, what),
        )
        self.samples.update(taken.samples)
        self.rounds.update(dict.fromkeys(taken.samples, taken.rounds))
        self.stopped.update(dict.fromkeys(taken.samples, taken.stopped))

    def _reloading(self, side: int) -> Way:
        """An answer of one side while the other is not in memory; a first one, not counted, loads the graphs."""

        def way(turn: int) -> "dict[str, float]":
            self.sides[1 - side].pipeline.release()
            self.sides[side].answer(turn)
            return dict(self.sides[side].answer(turn))

        return way

    def _share(self, name: str) -> None:
        first = self.sides[0]
        vision = dict(zip(("pixel_values", "input_ids", "prompt_lengths"), first.asked, strict=True))
        feeds = vision if name == "vision" else first.prefill_feeds
        self.shares[name] = node_share(self.face, name, feeds, budget=first.pipeline.budget)

    def _release(self) -> None:
        for side in self.sides:
            side.pipeline.release()
