"""Who answers questions in torch: a checkpoint, whole, as an artifact carves it, or under a control at its counts."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

from tokcarve.exporters.device.playing import Asked
from tokcarve.exporters.device.route import Choice
from tokcarve.exporters.evaluation.speaking import Floats, Spoken
from tokcarve.exporters.reply import TorchRouter, use_threads
from tokcarve.passes import families
from tokcarve.passes.asking import Question, Reply, ask
from tokcarve.passes.families.load import read_model
from tokcarve.passes.graph import Seen, TokenGraphs, thread
from tokcarve.recipes.artifact import Artifact
from tokcarve.recipes.carve import carve, method_of, rewritten, whole

__all__ = ["Studio", "TorchSpeaker"]


class TorchSpeaker:
    """A model in torch; an image is seen once for consecutive questions, unless the method reads them."""

    batch = 1

    def __init__(self, graphs: TokenGraphs) -> None:
        self.graphs = graphs
        self.entering = thread(graphs.vision).count
        self.provider = f"torch {next(graphs.language.parameters()).device}"
        self._seen: tuple[Any, Seen] | None = None

    def free(self, asked: Sequence[Asked], most: int) -> list[Spoken]:
        """As `Speaker.free`."""
        return [_spoken(self._ask(one, most, None)) for one in asked]

    def forced(self, asked: Sequence[Asked], said: Sequence[Sequence[int]]) -> list[Floats]:
        """As `Speaker.forced`."""
        return [_spoken(self._ask(one, len(row), row)).logits for one, row in zip(asked, said, strict=True)]

    def _ask(self, one: Asked, most: int, said: Sequence[int] | None) -> Reply:
        question = Question(
            pixel_values=torch.from_numpy(one.pixels),
            before=one.before,
            after=one.after,
            state={name: torch.zeros(1, self.entering) for name in self.graphs.asks},
        )
        seen = self._seen[1] if self._seen is not None and self._seen[0] is one.pixels else None
        stops = self.graphs.geometry.eos_token_ids if said is None else ()
        reply = ask(self.graphs, question, most, said, seen, stops)
        self._seen = None if self.graphs.reads_text else (one.pixels, reply.seen)
        return reply


class Studio:
    """The checkpoint that an artifact was made from, checked now and read once, when it is first needed.

    Raises ModelError where it is gone, ArtifactError where it has changed, ExportError for a bad thread count.
    """

    def __init__(self, artifact: Artifact, threads: int | None = None) -> None:
        use_threads(threads)
        self.artifact = artifact
        self._path = artifact.open_base().path

    @cached_property
    def _base(self) -> Any:
        return read_model(self._path)

    def whole(self) -> TorchSpeaker:
        """The model with all its visual tokens."""
        return TorchSpeaker(whole(self._base, self.artifact))

    def carved(self, tokens: int | None) -> TorchSpeaker:
        """The model as the artifact has it, or one count of a budget set."""
        return TorchSpeaker(carve(self._base, self.artifact, tokens).graphs)

    def router(self, mean: int | None) -> Callable[[Floats], Choice]:
        """Which budget of a set an image [1, 3, height, width] gets."""
        router = TorchRouter(self._base, self.artifact, mean)
        return lambda pixels: router(torch.from_numpy(pixels))

    def control(self, name: str, params: Mapping[str, Any], tokens: int) -> TorchSpeaker:
        """The model under a control that keeps `tokens`, numbered as the artifact numbers its own."""
        plain = families.capture(self._base)
        method = method_of(name, dict(params))
        return TorchSpeaker(rewritten(plain, method, tokens, None, self.artifact.manifest.positions).graphs)


def _spoken(reply: Reply) -> Spoken:
    return Spoken(tokens=tuple(reply.tokens), logits=reply.logits.float().numpy())
