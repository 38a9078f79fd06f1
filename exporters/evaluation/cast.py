"""Which models answer side by side: the unpruned one, the artifact's, and controls that keep as many tokens blindly.

Controls are carved in torch from the base checkpoint, also where the artifact runs in ONNX Runtime, or are exported
artifacts of their own. A method that drops tokens inside the language model lets more of them into it than it keeps,
so it is compared at its count and at the mean over its layers, which is what it costs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from tokcarve.exporters.device.route import Wish
from tokcarve.exporters.device.session import Face
from tokcarve.exporters.evaluation.opened import Opened, studio_of
from tokcarve.exporters.evaluation.speaking import OrtSpeaker, Speaker
from tokcarve.passes.errors import ArtifactError, BudgetError, TokcarveError
from tokcarve.recipes.artifact import Artifact
from tokcarve.recipes.manifest import Manifest

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
    the artifacts that an exported control is; shares: of the questions that each budget of a routed set answers, whose
    means the counts are."""

    name: str
    method: str
    runtime: str
    tokens: int
    mean: float
    runs: tuple[Callable[[], Speaker], ...]
    source: str = ""
    shares: Mapping[int, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Cast:
    """The sides in order, the unpruned first, the pruned second; what is to be said about them."""

    roles: tuple[Role, ...]
    notes: tuple[str, ...]


def counted(manifest: Manifest, wish: Wish, shares: Mapping[int, float] | None) -> tuple[float, float]:
    """Tokens left behind the last stage and their mean over the layers of the language model, of the budget that is
    evaluated or, by the `shares` of questions that each gets, of a routed set; BudgetError as `Wish.named`."""
    named = wish.named(manifest)
    means = {manifest.budget.tokens: manifest.numbers.tokens_mean}
    means |= {one.tokens: one.numbers.tokens_mean for one in manifest.budgets}
    if named is not None:
        return float(named), means[named]
    if shares is None:
        raise BudgetError("what a router keeps is known once it has seen the images")
    return sum(tokens * share for tokens, share in shares.items()), sum(means[one] * shares[one] for one in shares)


def cast_of(opened: Opened, wish: Wish, shares: Mapping[int, float] | None = None) -> Cast:
    """The sides of an evaluation; exported controls, where there are any, stand for those carved in torch.

    `shares` as in `counted`. ArtifactError for a control of another model, count or method; what opening a checkpoint
    raises.
    """
    artifact, runtime, manifest = opened.artifact, opened.runtime, opened.artifact.manifest
    tokens, mean = counted(manifest, wish, shares)
    count, total = round(tokens), manifest.geometry.total
    roles = [
        Role(name=UNPRUNED, method="none", runtime=runtime, tokens=total, mean=float(total), runs=(opened.whole,)),
        Role(
            name=PRUNED,
            method=manifest.method.name,
            runtime=runtime,
            tokens=count,
            mean=mean,
            runs=(opened.carved(wish),),
            shares=shares,
        ),
    ]
    notes: tuple[str, ...] = ()
    if opened.controls is None:
        notes = ("no controls, as was asked: nothing shows that the method does better than chance",)
    elif opened.controls:
        for other, _ in opened.controls:
            _check_control(artifact, other, count)
        roles += _exported(opened.controls)
    else:
        made, notes = _carved(opened, [count, round(mean)])
        roles += made
    return Cast(roles=tuple(roles), notes=notes)


def _carved(opened: Opened, counts: Sequence[int]) -> tuple[list[Role], tuple[str, ...]]:
    """Controls in torch at every one of `counts`, and what is to be said where there are none."""
    wanted = [one for one in dict.fromkeys(counts) if one < opened.artifact.manifest.geometry.total]
    if not wanted:
        return [], ("no controls: no visual token is dropped, so there is nothing to drop blindly",)
    try:
        studio = opened.studio if opened.studio is not None else studio_of(opened.artifact, opened.threads)
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


def _exported(controls: Sequence[tuple[Artifact, Face]]) -> list[Role]:
    """Exported artifacts as controls; those of one method are runs of one control."""
    made: dict[str, Role] = {}
    for other, face in controls:
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
