"""An artifact's schedule applied to a model again: what load, export and inspect start from."""

from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from typing import Any

from safetensors.torch import load as load_tensors
from torch import Tensor

from tokcarve.passes.blocks import Embedding
from tokcarve.passes.errors import ArtifactError, MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.insert import RewriteResult, StageRecord, rewrite
from tokcarve.passes.methods import METHODS
from tokcarve.passes.router import PREFIX, Glimpse, Router
from tokcarve.passes.stage import Frozen, Method, Stage
from tokcarve.passes.taps import needs_cls
from tokcarve.recipes.artifact import Artifact

__all__ = [
    "carve",
    "check_stages",
    "method_of",
    "name_of",
    "params_of",
    "planned",
    "positioned",
    "record",
    "rewritten",
    "router_of",
    "whole",
]


def method_of(name: str, params: dict[str, Any]) -> Method:
    """The method `name` with its hyper-parameters; MethodError for an unknown name or parameter."""
    if name not in METHODS:
        raise MethodError(f"no method {name!r}; methods are {', '.join(METHODS)}")
    try:
        return METHODS[name](**params)
    except TypeError as error:
        raise MethodError(f"method {name} does not take these parameters ({', '.join(params)}): {error}") from error


def name_of(method: Method) -> str:
    """The name under which the table has a method."""
    return next(name for name, kind in METHODS.items() if kind is type(method))


def params_of(method: Method) -> dict[str, Any]:
    """All hyper-parameters of a method, as a recipe or a manifest takes them."""
    return {field.name: getattr(method, field.name) for field in fields(method)}  # type: ignore[arg-type]


def planned(
    method: Method, geometry: Geometry, tokens: int, frozen: Frozen | None, positions: str
) -> tuple[Stage, ...]:
    """The stages of `method`; MethodError where they do not fit the tower, the count or the position policy."""
    stages = method.stages(geometry, tokens, frozen)
    check_stages(method, geometry, stages, positions)
    return stages


def check_stages(method: Method, geometry: Geometry, stages: Sequence[Stage], positions: str) -> None:
    """Raises MethodError where the stages of `method` do not fit the tower or the position policy."""
    title = method.facts.title
    if not geometry.vision.prefix and any(needs_cls(stage.reads) for stage in stages):
        serving = [name for name, other in METHODS.items() if not needs_cls(other.facts.reads)]
        raise MethodError(
            f"{title} reads the [CLS] row, and this {geometry.vision.kind} tower has no [CLS] token; methods that "
            f"work here are {', '.join(serving)}"
        )
    if positions == "original" and any(stage.takes_cls for stage in stages):
        raise MethodError(
            f"{title} also sends the [CLS] row, which has no place in the image, so its tokens cannot keep original "
            "positions; choose positions renumbered"
        )


def rewritten(
    graphs: TokenGraphs, method: Method, tokens: int, frozen: Frozen | None, positions: str = "renumbered"
) -> RewriteResult:
    """`graphs` carved by `method` down to `tokens`, with the embedding that the position policy asks for."""
    return rewrite(positioned(graphs, positions), planned(method, graphs.geometry, tokens, frozen, positions))


def positioned(graphs: TokenGraphs, positions: str) -> TokenGraphs:
    """`graphs` with the embedding that the position policy asks for."""
    if positions != "original":
        return graphs
    geometry: Geometry = graphs.geometry
    embedding = Embedding(graphs.parts.embed_tokens, geometry.image_token_id, total=geometry.total)
    return replace(graphs, embedding=embedding)


def carve(model: Any, artifact: Artifact, tokens: int | None = None) -> RewriteResult:
    """The graphs of `model` (weights or meta device) as `artifact` records them; of a budget set those of `tokens`, or
    of the largest.

    ArtifactError when this version of tokcarve would plan another schedule than the manifest records, BudgetError for
    a count that it does not have.
    """
    manifest = artifact.manifest
    method = method_of(manifest.method.name, dict(manifest.method.params))
    count = manifest.budget.tokens if tokens is None else tokens
    schedule = manifest.schedule_of(count)
    frozen = Frozen(counts={stage.site: stage.keep for stage in schedule}, tensors=_of_method(artifact))
    result = rewritten(_captured(model), method, count, frozen, manifest.positions)
    made = [(s.site, s.total, s.keep, s.how) for s in result.schedule]
    recorded = [(s.site, s.total, s.keep, s.how) for s in schedule]
    if made != recorded:
        raise ArtifactError(
            f"the artifact records {_spell(recorded)}, and this version plans {_spell(made)}; run compress again"
        )
    return result


def router_of(model: Any, artifact: Artifact) -> Router | None:
    """What chooses among the budgets of a set, by the blocks of `model`; None where there is one budget."""
    record = artifact.manifest.router
    if record is None:
        return None
    graphs = _captured(model)
    return Router(Glimpse(graphs.parts, graphs.geometry, record.layer), _tensors(artifact)).eval()


def _captured(model: Any) -> TokenGraphs:
    # brings transformers, which what is only planned does not wait for
    from tokcarve.passes import families

    return families.capture(model)


def _tensors(artifact: Artifact) -> dict[str, Tensor]:
    stored = artifact.tensors()
    return {} if stored is None else load_tensors(stored)


def _of_method(artifact: Artifact) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in _tensors(artifact).items() if not name.startswith(PREFIX)}


def whole(model: Any, artifact: Artifact) -> TokenGraphs:
    """The graphs of `model` with nothing reduced; what the method tells of every row, they tell too."""
    graphs, manifest = _captured(model), artifact.manifest
    method = method_of(manifest.method.name, dict(manifest.method.params))
    stages = method.stages(graphs.geometry, graphs.geometry.total, None)
    return rewrite(graphs, [stage for stage in stages if stage.gives]).graphs


def _spell(schedule: Sequence[tuple[str, int, int, str]]) -> str:
    return ", ".join(f"{keep} after {site}" for site, _, keep, _ in schedule) or "no reduction"


def record(stages: tuple[StageRecord, ...]) -> list[dict[str, Any]]:
    """A schedule as the manifest stores it."""
    return [asdict(stage) for stage in stages]
