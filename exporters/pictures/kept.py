"""What methods keep of one image, stage by stage: plain numbers, whoever made them, and how much they share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Column", "Fate", "Kept", "Look", "jaccard", "overlap"]


@dataclass(frozen=True, kw_only=True)
class Kept:
    """One stage: `total` visual tokens before its site, `keep` behind it, and `how`.

    patches: the patch that each token left stands at, -1 for the [CLS] row; None where the runtime does not say.
    scores: by patch, of the tokens that were scored here, higher means keep; None for a stage without a score.
    groups: all patches that each token left stands for, in the order of `patches`; None where each is its own alone.
    """

    site: str
    total: int
    keep: int
    how: str
    patches: tuple[int, ...] | None
    scores: Mapping[int, float] | None = None
    groups: tuple[tuple[int, ...], ...] | None = None

    def members(self) -> dict[int, int]:
        """By patch, the patch of the token that stands for it."""
        patches = self.patches or ()
        found = {patch: patch for patch in patches if patch >= 0}
        for patch, group in zip(patches, self.groups or (), strict=bool(self.groups)):
            found |= {one: patch for one in group if one not in found}
        return found

    def record(self) -> dict[str, Any]:
        """This stage as JSON; the keys of `scores` are patches."""
        return {
            "site": self.site,
            "total": self.total,
            "keep": self.keep,
            "how": self.how,
            "kept": None if self.patches is None else list(self.patches),
            "scores": None if self.scores is None else {str(patch): score for patch, score in self.scores.items()},
            "stands_for": None if self.groups is None else [list(group) for group in self.groups],
        }


@dataclass(frozen=True, kw_only=True)
class Fate:
    """Where a patch left, and the patch whose token stands for it from there on; None for what did not happen."""

    left: str | None = None
    into: int | None = None


@dataclass(frozen=True, kw_only=True)
class Column:
    """One method on one image.

    name: unique in a look; source: the artifact's directory, or the model's name; answer: what it said, None where
    nothing was asked; notes: what the reader must know, whole sentences without a full stop.
    """

    name: str
    method: str
    runtime: str
    source: str
    tokens: int
    total: int
    stages: tuple[Kept, ...]
    answer: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def last(self) -> Kept:
        """The last stage that keeps some patches and says which; a method without one keeps every patch."""
        known = [stage for stage in self.stages if stage.patches]
        every = tuple(range(self.total))
        return known[-1] if known else Kept(site="", total=self.total, keep=self.total, how="keep", patches=every)

    def fates(self) -> list[Fate]:
        """What became of every patch."""
        found = [Fate() for _ in range(self.total)]
        for stage in self.stages:
            if stage.patches is None:
                continue
            members = stage.members()
            for patch, fate in enumerate(found):
                if fate.left is not None:
                    continue
                if patch not in members:
                    found[patch] = Fate(left=stage.site)
                elif members[patch] != patch:
                    found[patch] = Fate(into=members[patch])
        return found

    def record(self) -> dict[str, Any]:
        """This column as JSON."""
        return {
            "name": self.name,
            "method": self.method,
            "runtime": self.runtime,
            "source": self.source,
            "tokens": self.tokens,
            "total": self.total,
            "answer": self.answer,
            "stages": [stage.record() for stage in self.stages],
            "notes": list(self.notes),
        }


@dataclass(frozen=True, kw_only=True)
class Look:
    """One image under several methods. seen: the part of the image that the model sees, (left, top, right, bottom) in
    its pixels; grid: patches, (rows, columns); prompt: the question, None where the default one was asked."""

    image: str
    size: tuple[int, int]
    seen: tuple[float, float, float, float]
    grid: tuple[int, int]
    prompt: str | None
    columns: tuple[Column, ...]

    def record(self) -> dict[str, Any]:
        """This look as JSON."""
        return {
            "image": self.image,
            "size": list(self.size),
            "seen": list(self.seen),
            "grid": list(self.grid),
            "prompt": self.prompt,
            "columns": [column.record() for column in self.columns],
            "overlap": overlap(self.columns),
        }


def jaccard(one: Sequence[int], other: Sequence[int]) -> float:
    """Patches that both have, among those that any has; 1 for two empty sets."""
    first, second = set(one), set(other)
    return len(first & second) / len(first | second) if first | second else 1.0


def overlap(columns: Sequence[Column]) -> dict[str, Any]:
    """Jaccard overlap of what is left at the end, method by method, and of every stage with every such end:
    {"names", "last": rows in that order, "stages": [{"name", "site", "with": a row}, ...]}."""
    ends = [column.last.patches or () for column in columns]
    stages = [
        {"name": column.name, "site": stage.site, "with": [jaccard(stage.patches, end) for end in ends]}
        for column in columns
        for stage in column.stages
        if stage.patches is not None
    ]
    return {
        "names": [column.name for column in columns],
        "last": [[jaccard(one, other) for other in ends] for one in ends],
        "stages": stages,
    }
