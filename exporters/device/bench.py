"""The measuring itself: every stage of both sides of a face, loaded, timed in turn, and let go."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tokcarve.exporters.device.pipeline import Ids, Pipeline, greedy
from tokcarve.exporters.device.probe import probe
from tokcarve.exporters.device.session import Array, Face
from tokcarve.exporters.device.timing import node_share, time_in_turn

__all__ = ["Bench", "Samples"]

Samples = tuple[list[float], ...]


class Bench:
    """One measurement of a face.

    samples: milliseconds (pruned, unpruned) per stage; shares: selection's part of the pruned vision and prefill
    graphs, in 0..1; load: of the machine before anything ran; provider: where the language model ran, fell_back:
    whether a GPU was wanted there and did not start.
    """

    def __init__(
        self, face: Face, *, warm_up: int, repeats: int, tick: Callable[[str], None], budget: int | None = None
    ) -> None:
        self.face, self.warm_up, self.repeats, self.tick = face, warm_up, repeats, tick
        self.sides = (Pipeline(face, baseline=False, budget=budget), Pipeline(face, baseline=True))
        self.samples: dict[str, Samples] = {}
        self.shares: dict[str, float] = {"vision": 0.0, "prefill": 0.0}
        self.load = os.getloadavg()[0]
        self.provider, self.fell_back = "", False

    def run(self) -> None:
        """Fills `samples`, `shares` and `provider`; raises ExportError if a graph does not load."""
        inputs = [probe(side) for side in self.sides]
        lengths = [one[2] for one in inputs]
        seen = self._stage("vision", [_call(side.vision, *one) for side, one in zip(self.sides, inputs, strict=True)])
        self._share("vision", dict(zip(("pixel_values", "input_ids", "prompt_lengths"), inputs[0], strict=True)))
        embedded = self._stage(
            "embedding",
            [_call(side.embed, one[1], kept) for side, one, kept in zip(self.sides, inputs, seen, strict=True)],
        )
        prefilled = self._stage(
            "prefill",
            [_call(side.prefill, rows, count) for side, rows, count in zip(self.sides, embedded, lengths, strict=True)],
        )
        prefill = self.sides[0].graph("prefill")
        self.provider, self.fell_back = prefill.provider, prefill.fell_back
        self._release()
        if any(name.startswith("kept_indices.") for name in prefill.outputs):
            self._share("prefill", {**embedded[0], "prompt_lengths": lengths[0]})
        self._decode(prefilled, lengths)

    def _stage(self, name: str, ways: list[Callable[[int], dict[str, Array]]]) -> list[dict[str, Array]]:
        """Times both sides of a stage; gives what they made."""
        made = [way(0) for way in ways]
        self._time(name, ways)
        if name != "prefill":
            self._release()
        return made

    def _decode(self, prefilled: list[dict[str, Array]], lengths: list[Ids]) -> None:
        sides = zip(self.sides, prefilled, lengths, strict=True)
        self._time("decode", [_steps(side, made, count) for side, made, count in sides])
        self._release()

    def _time(self, name: str, ways: Sequence[Callable[[int], Any]]) -> None:
        self.samples[name] = time_in_turn(
            ways, warm_up=self.warm_up, repeats=self.repeats, tick=lambda: self.tick(name)
        )

    def _share(self, name: str, feeds: Mapping[str, Array]) -> None:
        self.shares[name] = node_share(self.face, name, feeds, budget=self.sides[0].budget)

    def _release(self) -> None:
        for side in self.sides:
            side.release()


def _steps(side: Pipeline, prefilled: Mapping[str, Array], lengths: Ids) -> Callable[[int], Ids]:
    """Decode steps behind a prefill, starting over when the cache is full."""
    latest, cache = greedy(prefilled["logits"]), side.cache(prefilled)
    return lambda turn: greedy(side.step(latest, lengths, turn % side.record.max_new, cache)["logits"])


def _call(function: Callable[..., dict[str, Array]], *arguments: Any) -> Callable[[int], dict[str, Array]]:
    return lambda _: function(*arguments)
