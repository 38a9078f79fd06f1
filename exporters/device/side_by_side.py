"""Two artifacts side by side: what was done to the model, what that costs, what was exported, what both keep.

Nothing is measured here: sizes and FLOPs come from the manifests, files from the exports' records, times and scores
from what `profile` and `eval` left in each artifact. Kept patches are those of the golden samples, where torch put the
same images and prompts to both; where the samples differ both exports are asked about bundled scenes.
"""

import json
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from tokcarve.exporters.device.face import EXPORT, WEIGHTS, ExportRecord, check_origin, read_export
from tokcarve.exporters.device.face import FOLDER as GRAPHS
from tokcarve.exporters.device.pipeline import Ids
from tokcarve.exporters.evaluation.files import FOLDER, RECORD
from tokcarve.passes.errors import ArtifactError, ExportError, TokcarveError
from tokcarve.passes.flops import conventions, count_flops, decode_flops, rows_of
from tokcarve.recipes.artifact import Artifact, read_artifact

__all__ = ["EVALUATION", "PROFILE", "Comparison", "Entry", "Overlap", "compare_artifacts"]

EVALUATION, PROFILE = Path(FOLDER) / RECORD, Path("profile.json")
"""Where an artifact has what `eval` and `profile` leave there unless told otherwise."""
_DEPENDS = {"profile": ("machine", "batch", "max_text", "max_new"), "evaluation": ("data", "runtime", "max_new")}
"""What figures depend on beside the artifact, as the saved records call it."""
_TEXT = 64
_SCENES = 4


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One artifact: its manifest, its export (None where it has none), and the saved results (None where there are
    none)."""

    artifact: Artifact
    export: ExportRecord | None
    profile: dict[str, Any] | None
    evaluation: dict[str, Any] | None

    @property
    def weights(self) -> int:
        """Bytes of the base checkpoint's weight files."""
        files = self.artifact.manifest.model.weights.files
        return sum(file.size for file in files if file.name != "config.json")

    @property
    def flops(self) -> dict[str, Any]:
        """FLOPs by part beside 64 rows of text, and the prefill by every convention."""
        manifest = self.artifact.manifest
        rows = rows_of(manifest.geometry, manifest.schedule, _TEXT)
        # layers before a cut inside the language model go on reading what was dropped behind it
        decode = decode_flops(manifest.geometry.text, [visual + _TEXT for visual in manifest.kv_rows])
        counted = asdict(count_flops(manifest.geometry, rows)) | {"decode": decode}
        return counted | {"conventions": dict(conventions(manifest.geometry, rows))}

    @property
    def files(self) -> dict[str, int] | None:
        """Bytes of the export: the shared weights, and all files of each folder; None where there is no export."""
        if self.export is None:
            return None
        sizes: dict[str, int] = {"weights": 0}
        for name, file in self.export.files.items():
            folder = "weights" if name == f"{GRAPHS}/{WEIGHTS}" else name.partition("/")[0]
            sizes[folder] = sizes.get(folder, 0) + file.bytes
        return sizes

    def record(self) -> dict[str, Any]:
        """As JSON."""
        manifest, export = self.artifact.manifest, self.export
        exported = None
        if export is not None:
            kept = ("faces", "precision", "dtype", "batch", "max_text", "max_new", "target")
            exported = {name: getattr(export, name) for name in kept} | {"bytes": self.files}
        return {
            "artifact": str(self.artifact.directory),
            "model": manifest.model.name,
            "weights_identity": manifest.model.weights.identity,
            "weights_bytes": self.weights,
            "method": manifest.method.model_dump(mode="json"),
            "budget": manifest.budget.model_dump(mode="json"),
            "positions": manifest.positions,
            "schedule": [stage.model_dump(mode="json") for stage in manifest.schedule],
            "numbers": manifest.numbers.model_dump(mode="json"),
            "kv_rows": list(manifest.kv_rows),
            "flops": self.flops,
            "export": exported,
            "profile": self.profile,
            "evaluation": self.evaluation,
        }


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """The Jaccard index of the patches that both keep, sample by sample, and of which samples; none where `why` says
    what stands against it."""

    jaccard: tuple[float, ...] = ()
    of: str = ""
    why: str | None = None

    @property
    def mean(self) -> float | None:
        """Over the samples; None where there are none."""
        return sum(self.jaccard) / len(self.jaccard) if self.jaccard else None

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {"samples": self.of or None, "jaccard": list(self.jaccard), "mean": self.mean, "why": self.why}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Both entries, what they keep alike, and what a reader must know before comparing figures."""

    entries: tuple[Entry, Entry]
    overlap: Overlap
    warnings: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        first, second = (entry.record() for entry in self.entries)
        return {"a": first, "b": second, "overlap": self.overlap.record(), "warnings": list(self.warnings)}


def compare_artifacts(first: Path, second: Path, *, anyway: bool = False) -> Comparison:
    """Two artifacts side by side; ArtifactError where they were made of different base weights, unless `anyway`, and
    for what is no artifact or has an export that was changed."""
    entries = _entry(first), _entry(second)
    said = _different(entries)
    if said is not None and not anyway:
        raise ArtifactError(f"{said}; their figures say little of each other: pass --anyway to see them nevertheless")
    warnings = [one for one in (said, *_unlike(entries)) if one is not None]
    return Comparison(entries=entries, overlap=_overlap(entries), warnings=tuple(warnings))


def _entry(directory: Path) -> Entry:
    artifact = read_artifact(directory)
    export = None
    if (artifact.directory / EXPORT).is_dir():
        export = read_export(artifact.directory)
        check_origin(artifact.directory, export, artifact.manifest)
    return Entry(
        artifact=artifact,
        export=export,
        profile=_saved(artifact.directory / PROFILE),
        evaluation=_saved(artifact.directory / EVALUATION),
    )


def _saved(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} cannot be read as JSON ({error}); write it again, or remove it") from None
    if not isinstance(found, dict):
        raise ArtifactError(f"{path} holds no JSON object; write it again, or remove it")
    return found


def _no_number(said: str) -> Any:
    raise ValueError(f"{said} is no number")


def _different(entries: tuple[Entry, Entry]) -> str | None:
    one, other = (entry.artifact for entry in entries)
    models = one.manifest.model, other.manifest.model
    if models[0].weights.identity == models[1].weights.identity:
        return None
    names = f"{one.directory} is made of {models[0].name}, {other.directory} of {models[1].name}"
    same = models[0].name == models[1].name
    return f"{names}, whose weights differ" if same else names


def _unlike(entries: tuple[Entry, Entry]) -> list[str]:
    """What makes saved figures of two artifacts hard to compare."""
    found, (one, other) = [], entries
    if one.export is not None and other.export is not None and one.export.precision != other.export.precision:
        found.append(f"the exports compute in {one.export.precision} and {other.export.precision}")
    for name, keys in _DEPENDS.items():
        kept = [getattr(entry, name) for entry in entries]
        if None not in kept:
            unlike = [key for key in keys if _facts(kept[0], key) != _facts(kept[1], key)]
            found += [f"the saved {name}s differ in their {' and '.join(unlike)}"] if unlike else []
    return found + [said for entry in entries for said in _stale(entry)]


def _stale(entry: Entry) -> list[str]:
    """Which saved results are of something else than the artifact as it is now; those that do not say are believed."""
    digests = {"artifact": entry.artifact.manifest.digest, "export": entry.export.digest if entry.export else None}
    found = []
    for name in _DEPENDS:
        made_of = (getattr(entry, name) or {}).get("made_of")
        kept = made_of if isinstance(made_of, dict) else {}
        other = [what for what, digest in kept.items() if digest is not None and digest != digests.get(what)]
        if other:
            again = "eval" if name == "evaluation" else name
            found.append(
                f"the saved {name} of {entry.artifact.directory} is of another {other[0]}; run `tokcarve {again}` again"
            )
    return found


def _facts(record: dict[str, Any], key: str) -> Any:
    facts = record.get(key)
    if not isinstance(facts, dict):
        return facts
    # the load of a machine is another every time, and the same questions may lie in another place
    return {name: one for name, one in facts.items() if name not in ("load", "source")}


def _overlap(entries: tuple[Entry, Entry]) -> Overlap:
    if any(entry.export is None for entry in entries):
        return Overlap(why="not both are exported")
    one, other = (entry.artifact.manifest.geometry for entry in entries)
    if one.vision.grid != other.vision.grid:
        return Overlap(why="the images have other patches")
    golden = [_golden(entry) for entry in entries]
    same = [(a, b) for key, a in golden[0].items() if (b := golden[1].get(key)) is not None]
    if same:
        return Overlap(jaccard=tuple(_jaccard(a, b) for a, b in same), of="golden samples that both have")
    try:
        kept = [_on_scenes(entry) for entry in entries]
    except TokcarveError as error:
        return Overlap(why=str(error))
    return Overlap(jaccard=tuple(map(_jaccard, *kept)), of="bundled scenes, for their golden samples differ")


def _golden(entry: Entry) -> dict[bytes, frozenset[int]]:
    """What is kept of each golden sample, by image and prompt."""
    path = entry.artifact.directory / EXPORT / "golden.npz"
    try:
        with np.load(path, allow_pickle=False) as stored:
            pixels, ids, kept = (stored[name] for name in ("pixel_values", "input_ids", "kept_indices"))
            lengths = stored["prompt_lengths"]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError) as error:
        raise ArtifactError(f"{path} holds no golden samples ({error}); export again with `tokcarve export`") from error
    keys = [pixels[i].tobytes() + ids[i, : lengths[i]].tobytes() for i in range(len(pixels))]
    return {key: _patches(row) for key, row in zip(keys, kept, strict=True)}


def _on_scenes(entry: Entry) -> list[frozenset[int]]:
    from tokcarve.exporters.device.answer import Answerer
    from tokcarve.tiny import evaluation

    answerer = Answerer(entry.artifact.directory)
    if answerer.asks:
        raise ExportError(f"{entry.artifact.directory} keeps a state between images, so that one image says nothing")
    # samples of one scene follow each other
    samples = [next(of_scene) for _, of_scene in islice(groupby(evaluation(), lambda one: one.scene), _SCENES)]
    made = answerer.answer([one.image for one in samples], [one.question for one in samples], 1)
    return [_patches(row) for row in made.kept_indices]


def _patches(kept: Ids) -> frozenset[int]:
    """Patches among kept indices; -1 is the [CLS] row."""
    return frozenset(int(one) for one in kept if one >= 0)


def _jaccard(one: frozenset[int], other: frozenset[int]) -> float:
    return len(one & other) / len(one | other) if one | other else 1.0
