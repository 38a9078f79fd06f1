"""A manifest's schedule applied to a model again: what load, export and inspect start from."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tokcarve.passes import families
from tokcarve.passes.blocks import Embedding
from tokcarve.passes.errors import ArtifactError, MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.insert import RewriteResult, StageRecord, rewrite
from tokcarve.passes.methods import METHODS
from tokcarve.passes.stage import Counts, Method
from tokcarve.recipes.artifact import Manifest

__all__ = ["carve", "method_of", "record", "rewritten"]


def method_of(name: str, params: dict[str, Any]) -> Method:
    """The method `name` with its hyper-parameters; MethodError for an unknown name or parameter."""
    if name not in METHODS:
        raise MethodError(f"no method {name!r}; methods are {', '.join(METHODS)}")
    try:
        return METHODS[name](**params)
    except TypeError as error:
        raise MethodError(f"method {name} does not take these parameters ({', '.join(params)}): {error}") from error


def rewritten(
    graphs: TokenGraphs, method: Method, tokens: int, counts: Counts | None, positions: str = "renumbered"
) -> RewriteResult:
    """`graphs` carved by `method` down to `tokens`, with the embedding that the position policy asks for."""
    result = rewrite(graphs, method.stages(graphs.geometry, tokens, counts))
    if positions == "renumbered":
        return result
    geometry: Geometry = graphs.geometry
    embedding = Embedding(graphs.parts.embed_tokens, geometry.image_token_id, total=geometry.total)
    return replace(result, graphs=replace(result.graphs, embedding=embedding))


def carve(model: Any, manifest: Manifest) -> RewriteResult:
    """The graphs of `model` (weights or meta device) under the manifest's schedule.

    ArtifactError when this version of tokcarve would plan another schedule than the manifest records.
    """
    method = method_of(manifest.method.name, dict(manifest.method.params))
    counts = {stage.site: stage.keep for stage in manifest.schedule}
    result = rewritten(families.capture(model), method, manifest.budget.tokens, counts, manifest.positions)
    planned = [(s.site, s.total, s.keep, s.how) for s in result.schedule]
    recorded = [(s.site, s.total, s.keep, s.how) for s in manifest.schedule]
    if planned != recorded:
        raise ArtifactError(
            f"the artifact records {_spell(recorded)}, and this version plans {_spell(planned)}; run compress again"
        )
    return result


def _spell(schedule: Sequence[tuple[str, int, int, str]]) -> str:
    return ", ".join(f"{keep} after {site}" for site, _, keep, _ in schedule) or "no reduction"


def record(stages: tuple[StageRecord, ...]) -> list[dict[str, Any]]:
    """A schedule as the manifest stores it."""
    return [{"site": s.site, "total": s.total, "keep": s.keep, "how": s.how} for s in stages]
