"""What answers for an artifact in one runtime, opened: its export in ONNX Runtime, or its checkpoint in torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tokcarve.exporters.device.face import check_origin
from tokcarve.exporters.device.playing import Asked
from tokcarve.exporters.device.route import Choice, OrtRouter, Wish
from tokcarve.exporters.device.session import Face, open_face
from tokcarve.exporters.evaluation.speaking import Floats, OrtSpeaker, Speaker, Spoken
from tokcarve.recipes.artifact import Artifact, read_artifact

if TYPE_CHECKING:
    from tokcarve.exporters.evaluation.in_torch import Studio

T = TypeVar("T")

__all__ = ["Opened", "RoutedSpeaker", "open_runtime", "studio_of"]


@dataclass(frozen=True, kw_only=True)
class Opened:
    """An artifact by `face` or by `studio`, and exported `controls` with their faces (None: none are wanted)."""

    artifact: Artifact
    threads: int | None
    face: Face | None
    studio: "Studio | None"
    controls: tuple[tuple[Artifact, Face], ...] | None = ()

    @property
    def runtime(self) -> str:
        """ort or torch."""
        return "torch" if self.face is None else "ort"

    @property
    def max_text(self) -> int | None:
        """What the exports hold of text; None in torch."""
        return min((face.record.max_text for face in self._faces), default=None)

    @property
    def max_new(self) -> int | None:
        """What the exports hold of new tokens; None in torch."""
        return min((face.record.max_new for face in self._faces), default=None)

    @property
    def _faces(self) -> list[Face]:
        own = [] if self.face is None else [self.face]
        return [*own, *(face for _, face in self.controls or ())]

    def whole(self) -> Speaker:
        """The model with all its visual tokens."""
        if self.face is not None:
            return OrtSpeaker(self.face, baseline=True)
        assert self.studio is not None
        return self.studio.whole()

    def carved(self, wish: Wish) -> Callable[[], Speaker]:
        """Who makes the model as the artifact has it: a budget of a set, or what its router chooses."""
        count = wish.named(self.artifact.manifest)
        if count is None:
            least = self.artifact.manifest.counts[0]
            return lambda: RoutedSpeaker(self.router(wish.mean_tokens), self._budget, least, self.batch)
        return partial(self._budget, count if self.artifact.manifest.router is not None else None)

    def router(self, mean: int | None) -> Callable[[Floats], Choice]:
        """Which budget of a set an image [1, 3, height, width] gets; BudgetError for a mean that it cannot have."""
        if self.face is not None:
            return OrtRouter(self.face, mean)
        assert self.studio is not None
        return self.studio.router(mean)

    @property
    def batch(self) -> int:
        """Questions at once."""
        return 1 if self.face is None else self.face.record.batch

    def _budget(self, tokens: int | None) -> Speaker:
        if self.face is not None:
            return OrtSpeaker(self.face, baseline=False, budget=tokens)
        assert self.studio is not None
        return self.studio.carved(tokens)


class RoutedSpeaker:
    """A budget set, of which `least` is one: every question is answered by the budget that its image gets; those are
    loaded when they are needed."""

    def __init__(
        self, choose: Callable[[Floats], Choice], make: Callable[[int], Speaker], least: int, batch: int
    ) -> None:
        self.least, self.batch = least, batch
        self._choose, self._speaker = choose, lru_cache(None)(make)
        self._latest: tuple[Floats, int] | None = None

    @property
    def provider(self) -> str:
        """Where the smallest budget runs, as all of them do."""
        return self._speaker(self.least).provider

    def free(self, asked: Sequence[Asked], most: int) -> list[Spoken]:
        """As `Speaker.free`."""
        return self._each(asked, lambda speaker, places: speaker.free([asked[place] for place in places], most))

    def forced(self, asked: Sequence[Asked], said: Sequence[Sequence[int]]) -> list[Floats]:
        """As `Speaker.forced`."""
        return self._each(
            asked,
            lambda speaker, places: speaker.forced([asked[one] for one in places], [said[one] for one in places]),
        )

    def _each(self, asked: Sequence[Asked], put: Callable[[Speaker, list[int]], list[T]]) -> list[T]:
        """What the budgets make of their questions, in the order of the questions."""
        shared: dict[int, list[int]] = {}
        for place, one in enumerate(asked):
            shared.setdefault(self._budget(one.pixels), []).append(place)
        found: dict[int, T] = {}
        for tokens, places in shared.items():
            found |= dict(zip(places, put(self._speaker(tokens), places), strict=True))
        return [found[place] for place in range(len(asked))]

    def _budget(self, pixels: Floats) -> int:
        """Consecutive questions about an image are routed once."""
        if self._latest is None or self._latest[0] is not pixels:
            self._latest = pixels, self._choose(pixels).tokens
        return self._latest[1]


def open_runtime(
    artifact: Artifact, runtime: str, *, controls: Sequence[Path] | None = (), threads: int | None = None
) -> Opened:
    """An artifact and exported controls, opened to answer by `runtime` (ort or torch); raises what opening an export
    or a checkpoint raises."""
    torch = runtime == "torch"
    others = None if controls is None else [read_artifact(path) for path in controls]
    return Opened(
        artifact=artifact,
        threads=threads,
        face=None if torch else _opened(artifact, threads),
        studio=studio_of(artifact, threads) if torch else None,
        controls=None if others is None else tuple((other, _opened(other, threads)) for other in others),
    )


def studio_of(artifact: Artifact, threads: int | None) -> "Studio":
    """The artifact's checkpoint in torch, which is imported here."""
    from tokcarve.exporters.evaluation.in_torch import Studio

    return Studio(artifact, threads)


def _opened(artifact: Artifact, threads: int | None) -> Face:
    face = open_face(artifact.directory, threads)
    check_origin(artifact.directory, face.record, artifact.manifest)
    return face
