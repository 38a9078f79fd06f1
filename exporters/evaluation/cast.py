"""Which models answer side by side: the unpruned one, the artifact's, and controls that keep as many tokens blindly.

Controls are carved in torch from the base checkpoint, also where the artifact runs in ONNX Runtime, or are exported
artifacts of their own. A method that drops tokens inside the language model lets more of them into it than it keeps,
so it is compared at its count and at the mean over its layers, which is what it costs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tokcarve.exporters.device.face import check_origin
from tokcarve.exporters.device.route import Wish
from tokcarve.exporters.device.session import Face, open_face
from tokcarve.exporters.evaluation.speaking import OrtSpeaker, Speaker
from tokcarve.passes.errors import ArtifactError, BudgetError, TokcarveError
from tokcarve.recipes.artifact import Artifact, read_artifact
from tokcarve.recipes.manifest import Manifest, Numbers

if TYPE_CHECKING:
    from tokcarve.exporters.evaluation.in_torch import Studio

__all__ = ["PRUNED", "UNPRUNED", "Cast", "Role", "cast_of", "counted"]

UNPRUNED, PRUNED = "unpruned", "pruned"
CONTROLS = ("random", "uniform")
EXPORTED_CONTROLS = (*CONTROLS, "pooling", "downsample")
RANDOM_SEEDS = 3
"""Draws of the random control, whose mean counts."""


@dataclass(frozen=True, kw_only=True)
class Role:
    """A side: its name, method, runtime and counts (`tokens` left behind the last stage, `mean` over the layers of the
    language model), and who speaks it, once or in several runs whose mean counts; source: digests of
    the artifacts that an exported control is."""

    name: str
    method: str
    runtime: str
    tokens: int
    mean: float
    runs: tuple[Callable[[], Speaker], ...]
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Cast:
    """The sides in order, the unpruned first, the pruned second; what is to be said about them; what an export holds
    of text and of new tokens, None in torch."""

    roles: tuple[Role, ...]
    notes: tuple[str, ...]
    max_text: int | None
    max_new: int | None


def counted(manifest: Manifest, tokens: int | None) -> tuple[int, Numbers]:
    """The count and the token numbers of what is evaluated; BudgetError for a set of which no budget is named."""
    named = Wish(tokens=tokens).named(manifest)
    if named is None:
        several = ", ".join(map(str, manifest.counts))
        raise BudgetError(f"this artifact has budgets of {several} tokens; name the one to evaluate with --tokens")
    further = {one.tokens: one.numbers for one in manifest.budgets}
    return named, further.get(named, manifest.numbers)


def cast_of(
    artifact: Artifact,
    *,
    runtime: str,
    tokens: int | None = None,
    controls: Sequence[Path] | None = (),
    threads: int | None = None,
) -> Cast:
    """The sides of an evaluation by `runtime` (ort or torch); `controls` are exported artifacts that stand for those
    carved in torch, None leaves controls out.

    ArtifactError for a control of another model, count or method; what opening an export or a checkpoint raises.
    """
    manifest = artifact.manifest
    count, numbers = counted(manifest, tokens)
    budget = count if manifest.router is not None else None
    total, mean = manifest.geometry.total, numbers.tokens_mean
    studio = _studio(artifact, threads) if runtime == "torch" else None
    faces = [] if runtime == "torch" else [_opened(artifact, threads)]
    if studio is None:
        whole = partial(OrtSpeaker, faces[0], baseline=True)
        carved = partial(OrtSpeaker, faces[0], baseline=False, budget=budget)
        speakers: tuple[Callable[[], Speaker], ...] = (whole, carved)
    else:
        speakers = (studio.whole, partial(studio.carved, budget))
    roles = [
        Role(name=UNPRUNED, method="none", runtime=runtime, tokens=total, mean=float(total), runs=speakers[:1]),
        Role(name=PRUNED, method=manifest.method.name, runtime=runtime, tokens=count, mean=mean, runs=speakers[1:]),
    ]
    notes: tuple[str, ...] = ()
    if controls is None:
        notes = ("no controls, as was asked: nothing shows that the method does better than chance",)
    elif controls:
        others = [read_artifact(path) for path in controls]
        for other in others:
            _check_control(artifact, other, count)
        faces += [_opened(other, threads) for other in others]
        roles += _exported(others, faces[-len(others) :])
    else:
        made, notes = _carved(artifact, studio, [count, round(mean)], threads)
        roles += made
    return Cast(
        roles=tuple(roles),
        notes=notes,
        max_text=min((face.record.max_text for face in faces), default=None),
        max_new=min((face.record.max_new for face in faces), default=None),
    )


def _studio(artifact: Artifact, threads: int | None) -> "Studio":
    from tokcarve.exporters.evaluation.in_torch import Studio

    return Studio(artifact, threads)


def _opened(artifact: Artifact, threads: int | None) -> Face:
    face = open_face(artifact.directory, threads)
    check_origin(artifact.directory, face.record, artifact.manifest)
    return face


def _carved(
    artifact: Artifact, studio: "Studio | None", counts: Sequence[int], threads: int | None
) -> tuple[list[Role], tuple[str, ...]]:
    """Controls in torch at every one of `counts`, and what is to be said where there are none."""
    wanted = [one for one in dict.fromkeys(counts) if one < artifact.manifest.geometry.total]
    if not wanted:
        return [], ("no controls: no visual token is dropped, so there is nothing to drop blindly",)
    try:
        studio = studio if studio is not None else _studio(artifact, threads)
    except ModuleNotFoundError as error:
        return [], (
            f"no controls: they are carved in torch, and {error.name} is not installed here (pip install "
            "'tokcarve[compress]'); or give exported ones with --control DIR",
        )
    except TokcarveError as error:
        return [], (f"no controls: {error}; or give exported ones with --control DIR",)
    made = []
    for tokens in wanted:
        for name in CONTROLS:
            settings = [{"seed": seed} for seed in range(RANDOM_SEEDS)] if name == "random" else [{}]
            runs = tuple(partial(studio.control, name, one, tokens) for one in settings)
            title = name if tokens == counts[0] else f"{name} {tokens}"
            made.append(Role(name=title, method=name, runtime="torch", tokens=tokens, mean=float(tokens), runs=runs))
    return made, ()


def _check_control(artifact: Artifact, other: Artifact, count: int) -> None:
    path, method, tokens = other.directory, other.manifest.method.name, other.manifest.budget.tokens
    if method not in EXPORTED_CONTROLS:
        raise ArtifactError(
            f"--control {path} was carved by {method}, which is no control; give one of {', '.join(EXPORTED_CONTROLS)}"
        )
    if other.manifest.model.weights.identity != artifact.manifest.model.weights.identity:
        raise ArtifactError(
            f"--control {path} was made from other weights ({other.manifest.model.name}) than {artifact.directory} "
            f"({artifact.manifest.model.name}); compress the same model by {method}"
        )
    if tokens != count:
        raise ArtifactError(
            f"--control {path} keeps {tokens} tokens, and {artifact.directory} keeps {count}; compress it with "
            f"--tokens {count}"
        )


def _exported(others: Sequence[Artifact], faces: Sequence[Face]) -> list[Role]:
    """Exported artifacts as controls; those of one method are runs of one control."""
    made: dict[str, Role] = {}
    for other, face in zip(others, faces, strict=True):
        method, numbers = other.manifest.method.name, other.manifest.numbers
        earlier = made.get(method)
        runs: list[Callable[[], Speaker]] = [*(() if earlier is None else earlier.runs)]
        runs.append(partial(OrtSpeaker, face, baseline=False))
        made[method] = Role(
            name=method,
            method=method,
            runtime="ort",
            tokens=other.manifest.budget.tokens,
            mean=numbers.tokens_mean,
            runs=tuple(runs),
            source=f"{'' if earlier is None else earlier.source}{face.record.digest}",
        )
    return list(made.values())
