"""The four graphs of one side of a face, as the steps of an answer: vision, embedding, prefill, then decode by decode.

Every step is a plain call on numpy arrays with the exported batch; the KV cache of layer l is one buffer of the
exported capacity, whose first rows prefill fills and to which every decode step adds one.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tokcarve.exporters.device.session import Array, Face, Graph

__all__ = ["Cache", "Ids", "Pipeline", "greedy"]

Ids = NDArray[np.int64]
Cache = dict[str, Array]


class Pipeline:
    """One side of a face, or a budget of a set; a graph is loaded when it is first used and stays until `release`.

    `profile_to` is a directory where ONNX Runtime writes what every node took, in files named after the graphs."""

    def __init__(
        self, face: Face, *, baseline: bool, budget: int | None = None, profile_to: Path | None = None
    ) -> None:
        self.face, self.baseline, self.budget, self.profile_to = face, baseline, budget, profile_to
        self.record = face.record
        self.side = face.record.side(baseline, budget)
        self._graphs: dict[str, Graph] = {}

    def graph(self, name: str) -> Graph:
        """The graph `name`, loaded if need be; raises ExportError if ONNX Runtime cannot."""
        if name not in self._graphs:
            file = None if self.profile_to is None else self.profile_to / name
            self._graphs[name] = self.face.open(name, baseline=self.baseline, budget=self.budget, profile_to=file)
        return self._graphs[name]

    @property
    def asks(self) -> tuple[str, ...]:
        """What prefill takes of whoever runs it, by name: the state of a method that keeps one between images."""
        known = {"inputs_embeds", "position_ids", "prompt_lengths", "visual_start", *self.graph("vision").outputs}
        return tuple(name for name in self.graph("prefill").shapes if name not in known)

    def release(self) -> None:
        """Lets go of every loaded graph and its memory."""
        self._graphs.clear()

    def vision(self, pixel_values: Array, input_ids: Ids, lengths: Ids) -> dict[str, Array]:
        """`image_features` [batch, tokens, hidden] and `kept_indices` [batch, tokens] of [batch, 3, height, width].

        The prompts (as for `embed`) and their lengths [batch] are read by methods that choose by the question.
        """
        feeds = {"pixel_values": pixel_values, "input_ids": input_ids, "prompt_lengths": lengths}
        return self.graph("vision").run(feeds)

    def embed(self, input_ids: Ids, seen: Mapping[str, Array]) -> dict[str, Array]:
        """What prefill takes of right-padded ids [batch, rows]; `seen` is what vision gave."""
        made = self.graph("embedding").run({"input_ids": input_ids, **seen})
        start: Ids = np.argmax(input_ids == self.record.geometry.image_token_id, axis=1).astype(np.int64)
        return {**seen, **made, "visual_start": start}

    def prefill(self, embedded: Mapping[str, Array], lengths: Ids) -> dict[str, Array]:
        """`logits` [batch, 1, vocab] of the last real row, every layer's keys and values, and what layers kept."""
        made = self.graph("prefill").run({**embedded, "prompt_lengths": lengths})
        return {**made, "visual_start": embedded["visual_start"]}

    def kept(self, seen: Mapping[str, Array], prefilled: Mapping[str, Array]) -> Ids:
        """Patch ids [batch, keep] of the visual tokens that are left behind the last stage that chose."""
        return list(self.kept_by_site(seen, prefilled).values())[-1]

    def kept_by_site(self, seen: Mapping[str, Array], prefilled: Mapping[str, Array]) -> dict[str, Ids]:
        """The same behind the vision graph, under "", and behind every site of the language model that chose."""
        entered: Ids = seen["kept_indices"].astype(np.int64)
        kept = {"": entered}
        for name, inside in prefilled.items():
            if name.startswith("kept_indices."):
                site = name.replace("kept_indices.", "language.layers.")
                kept[site] = np.take_along_axis(entered, inside, axis=1)
        return kept

    def told(self, made: Mapping[str, Array]) -> dict[str, Array]:
        """What the method tells, by name, among the outputs of prefill or decode."""
        known = ("logits", "present.", "kept_indices.", "visual_start")
        return {name: one for name, one in made.items() if not name.startswith(known)}

    def cache(self, prefilled: Mapping[str, Array]) -> Cache:
        """What decode takes of a prompt: buffers of the exported capacities with the prompt's rows in them, and where
        the visual tokens begin."""
        decode, cache = self.graph("decode"), {"visual_start": prefilled["visual_start"]}
        for layer, rows in enumerate(self.side.rows):
            for kind in ("key", "value"):
                name = f"past_key_values.{layer}.{kind}"
                cache[name] = np.zeros(decode.shapes[name], decode.types[name])
                cache[name][:, :, :rows] = prefilled[f"present.{layer}.{kind}"]
        return cache

    def step(self, latest: Ids, lengths: Ids, step: int, cache: Cache) -> dict[str, Array]:
        """`logits` [batch, 1, vocab], and what the method tells, after feeding `latest` [batch, 1]; its keys and values
        are written into `cache`."""
        skipped = self.record.total - self.side.tokens if self.record.positions == "original" else 0
        feeds = {
            "input_ids": latest,
            "position_ids": lengths[:, None] + skipped + step,
            "prompt_lengths": lengths,
            "step": np.array([step], np.int64),
        }
        made = self.graph("decode").run({**feeds, **cache})
        for layer, rows in enumerate(self.side.rows):
            for kind in ("key", "value"):
                cache[f"past_key_values.{layer}.{kind}"][:, :, rows + step] = made[f"present.{layer}.{kind}"][:, :, 0]
        return made


def greedy(logits: Array) -> Ids:
    """The best token [batch, 1] of logits [batch, 1, vocab]; of equals the lowest id."""
    best: Ids = np.argmax(logits[:, 0], axis=-1).astype(np.int64)
    return best[:, None]
