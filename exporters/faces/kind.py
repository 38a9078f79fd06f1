"""What a face is made of: the graphs that it needs, the files beside them, and how all of it is proven."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from tokcarve.exporters.device.compare import Check
from tokcarve.exporters.device.face import EXPORT, FOLDER, EngineRecord, ExportRecord
from tokcarve.exporters.golden import Golden
from tokcarve.exporters.graph_file import GraphFile
from tokcarve.exporters.modules import FaceGraph
from tokcarve.exporters.onnx import OPSET
from tokcarve.exporters.quality import Heard
from tokcarve.exporters.source import Carved, Source
from tokcarve.passes.router import Router
from tokcarve.recipes.artifact import Artifact

__all__ = ["ALL", "FaceKind", "Proof", "Request", "Work"]

ALL = "all"
"""Among the faces of a request: every face that can carry the artifact."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked of an export: its faces, images per run, most text tokens of a prompt, most new ones; and whether
    weights that need no conversion stay in the checkpoint's files, which get second names in the export; `precision` is
    one of `precision.PRECISIONS`. Graphs are in the ONNX `opset`, and those of `trt` for the board `target`
    (BOARD[@TENSORRT]) where one is named."""

    faces: tuple[str, ...] = ("ort",)
    batch: int = 1
    max_text: int = 64
    max_new: int = 64
    reference_weights: bool = False
    opset: int = OPSET
    target: str | None = None
    precision: str = "fp32"


@dataclass(frozen=True, kw_only=True)
class Work:
    """An export that is being made in `root`, which looks like an artifact: its graphs are written, and golden samples.

    `draft` is its record before anything was checked; `goldens` has the samples of each side with what torch makes of
    them, and is empty where this machine cannot run the model; `router` is that of a set with all of its weights, and
    `predicted` the size of the weight file in bytes, as it was before it was written; `heard` are samples
    answered with the checkpoint's own weights.
    """

    root: Path
    source: Source
    request: Request
    draft: ExportRecord
    graphs: tuple[GraphFile, ...]
    goldens: tuple[tuple[Carved, Golden], ...]
    router: Router | None
    predicted: int
    heard: Heard | None

    @property
    def directory(self) -> Path:
        """The export."""
        return self.root / EXPORT

    @property
    def onnx(self) -> Path:
        """Its graphs and their weights."""
        return self.directory / FOLDER


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The checks that were made of a face, and what was not checked; `said` is a sentence for the user, `engines` were
    built here, and `script` is a file beside the graphs that builds them elsewhere."""

    checks: tuple[Check, ...] = ()
    not_checked: tuple[str, ...] = ()
    said: str | None = None
    engines: tuple[EngineRecord, ...] = ()
    script: str | None = None


class FaceKind(ABC):
    """One runtime's layout: `name` is that of the option and of its directory in an export, `about` says whom it is
    for."""

    name: ClassVar[str]
    about: ClassVar[str]

    def refuses(self, artifact: Artifact, request: Request) -> str | None:
        """Why this face cannot carry the artifact, and which can; None where it can. No weight is read for it."""
        return None

    def cannot(self, source: Source) -> str | None:
        """The same of what only the carved graphs can tell; nothing was written yet."""
        return None

    @abstractmethod
    def pieces(self, source: Source) -> Iterator[tuple[str, FaceGraph]]:
        """Every graph with its file name, in order; graphs of one name are the same in every face."""

    def complete(self, work: Work) -> None:
        """Writes what the face has beside graphs and weights."""
        return None

    def graphs(self, work: Work) -> list[GraphFile]:
        """Those of the written graphs that are its own."""
        names = {name for name, _ in self.pieces(work.source)}
        return [graph for graph in work.graphs if graph.name in names]

    @abstractmethod
    def prove(self, work: Work) -> Proof:
        """Compares the face with torch, by the runtime that it is for where that is here."""
