"""The passes that carve: expand a layer, insert one stage, and a plan as a fold over stages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx, nn

from tokcarve.passes.blocks import Attend, Feed, ResizedPatches, VisionBlock
from tokcarve.passes.carver import Carver
from tokcarve.passes.errors import MethodError, TapNotFound
from tokcarve.passes.geometry import centres
from tokcarve.passes.graph import Thread, TokenGraphs, clone, give, input_node, node_at, results, thread
from tokcarve.passes.language_carver import LanguageCarver, carve_decode, watch_decode
from tokcarve.passes.lean import make_lean
from tokcarve.passes.stage import Stage
from tokcarve.passes.taps import TAPS, needs_cls
from tokcarve.passes.text_taps import TEXT_TAPS, Place

__all__ = ["RewriteResult", "StageRecord", "expand_layers", "in_language", "insert_stage", "rewrite", "schedule_of"]

ATTENTION = ".attention"


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One reduction as it stands in the graph: `total` tokens before the site, `keep` after it; `positions` as in
    Stage, None before the language model; `neurons` of a lean layer."""

    site: str
    total: int
    keep: int
    how: str
    positions: str | None = None
    neurons: int | None = None


@dataclass(frozen=True, kw_only=True)
class RewriteResult:
    """graphs: the new graphs, weights shared. schedule: the reductions in order. modified: whether any node changed.
    stages: what was inserted, observing stages too."""

    graphs: TokenGraphs
    schedule: tuple[StageRecord, ...]
    modified: bool
    stages: tuple[Stage, ...] = ()


def rewrite(graphs: TokenGraphs, stages: Sequence[Stage]) -> RewriteResult:
    """The graphs with every stage inserted in order; no stages leave them as they are.

    MethodError for a stage at a site the graph does not have, out of order, or with a tap the tower cannot serve.
    """
    inside = {stage.site.removesuffix(ATTENTION) for stage in stages if stage.site.endswith(ATTENTION)}
    layers = [site for site in _sites(graphs.vision) if site in inside and site.startswith("vision.layers.")]
    carved = replace(graphs, vision=expand_layers(graphs.vision, layers)) if layers else graphs
    total, rank = graphs.geometry.total, -1
    for stage in stages:
        place = _place(carved, stage)
        if place <= rank:
            raise MethodError(f"stage at {stage.site} comes after a later site; order the stages by depth")
        least = 0 if stage.how == "exit" else 1
        if not least <= stage.keep <= total:
            raise MethodError(f"stage at {stage.site} keeps {stage.keep} of {total} tokens; choose {least}..{total}")
        carved = insert_stage(carved, stage)
        rank, total = place, stage.keep
    schedule = schedule_of(stages, graphs.geometry.total)
    return RewriteResult(graphs=carved, schedule=schedule, modified=bool(stages), stages=tuple(stages))


def schedule_of(stages: Sequence[Stage], total: int) -> tuple[StageRecord, ...]:
    """The reductions that `stages`, in order, make of `total` tokens; those that only observe are none."""
    schedule = []
    for stage in stages:
        if stage.how != "observe":
            schedule.append(_record(stage, total))
        total = stage.keep
    return tuple(schedule)


def _record(stage: Stage, total: int) -> StageRecord:
    positions = stage.positions if in_language(stage.site) and stage.how != "lean" else None
    return StageRecord(
        site=stage.site, total=total, keep=stage.keep, how=stage.how, positions=positions, neurons=stage.neurons
    )


def _sites(*modules: fx.GraphModule) -> list[str]:
    return [node.meta["site"] for module in modules for node in module.graph.nodes if "site" in node.meta]


def in_language(site: str) -> bool:
    """Whether a site lies in the language model."""
    return site.startswith("language.")


def _place(graphs: TokenGraphs, stage: Stage) -> int:
    """Which site of the graphs, in order, a stage goes to; refuses a stage that cannot go there."""
    sites = _sites(graphs.vision, graphs.language)
    if stage.site not in sites:
        raise MethodError(f"no site {stage.site!r} in this model; it has {', '.join(sites)}")
    _check_reads(graphs, stage)
    before = thread(graphs.vision)
    if (stage.how == "resize") != (stage.site == "pixels"):
        raise MethodError(f"a stage that does {stage.how} at {stage.site}: only an image is resized, and only resized")
    inside = in_language(stage.site)
    if (stage.how in ("exit", "lean") and not inside) or (stage.how in ("mask", "resize") and inside):
        raise MethodError(
            f"a stage that does {stage.how} at {stage.site}: tokens exit a language layer, and masks end before"
        )
    if stage.takes_cls and before.index is not None:
        raise MethodError(f"stage at {stage.site} takes the [CLS] row behind an earlier cut; only a first cut can")
    if before.biased and stage.how != "observe" and stage.site.startswith("vision.") and not stage.biases:
        raise MethodError(f"stage at {stage.site} loses the sizes that attention counts; let it hand on a bias")
    return sites.index(stage.site)


def _check_reads(graphs: TokenGraphs, stage: Stage) -> None:
    known = TEXT_TAPS if in_language(stage.site) else TAPS
    unknown = [tap for tap in stage.reads if tap not in known]
    if unknown:
        raise TapNotFound(f"stage at {stage.site} reads {unknown[0]!r}; taps there are {', '.join(known)}")
    if in_language(stage.site):
        return
    of_layers = [tap for tap in stage.reads if TAPS[tap].source in ("block", "next")]
    if of_layers and not stage.site.startswith("vision."):
        raise TapNotFound(f"stage at {stage.site} reads {of_layers[0]!r}, which only a vision layer has; read it there")
    if stage.site.endswith(ATTENTION) and any(TAPS[tap].source == "next" for tap in stage.reads):
        raise TapNotFound(f"stage at {stage.site} reads the layer behind, before its own layer is done; read it there")
    if needs_cls(stage.reads) and not graphs.geometry.vision.prefix:
        raise MethodError(
            f"the method reads the [CLS] row, and this {graphs.geometry.vision.kind} tower has no [CLS] token; "
            "choose a method that does not read cls_attention (see `tokcarve methods`)"
        )


def insert_stage(graphs: TokenGraphs, stage: Stage) -> TokenGraphs:
    """New graphs with `stage` behind its site; `graphs` are untouched.

    Rows before the first patch are never dropped (none are left after the connector), unless the stage takes them, and
    text never is.
    """
    if in_language(stage.site):
        return _insert_in_language(graphs, stage)
    module = clone(graphs.vision)
    if stage.how == "resize":
        after = _resize(module, graphs, stage)
    else:
        after = Carver(module, graphs, stage).write(thread(graphs.vision))
    return replace(graphs, vision=_finished(module, after))


def _insert_in_language(graphs: TokenGraphs, stage: Stage) -> TokenGraphs:
    vision, language, decode = graphs.vision, clone(graphs.language), clone(graphs.decode)
    before = thread(language)
    if "visual_start" not in graphs.language_inputs:
        before = replace(before, count=thread(vision).count)
        if thread(vision).carry:
            vision, taken = _hand_over(vision, language, thread(vision).carry)
            before = replace(before, carry=taken)
    if stage.how == "lean":
        make_lean(language, graphs, stage, Place(count=before.count, dropped=before.dropped))
        return replace(graphs, vision=vision, language=_finished(language, before))
    after = LanguageCarver(language, graphs, stage).write(before)
    if stage.how != "observe":
        carve_decode(decode, graphs, stage, after)
    elif stage.gives:
        watch_decode(decode, graphs, stage, after)
    decode.recompile()
    return replace(graphs, vision=vision, language=_finished(language, after), decode=decode)


def _hand_over(
    vision: fx.GraphModule, language: fx.GraphModule, carry: Mapping[str, str]
) -> tuple[fx.GraphModule, dict[str, str]]:
    """The vision graph that also gives what its last rule handed on, and where `language`, changed, takes it."""
    giving = clone(vision)
    give(giving, *results(giving), {name: node_at(giving, node) for name, node in carry.items()})
    taken = {name: input_node(language, name).name for name in carry}
    return _finished(giving, thread(vision)), taken


def _finished(module: fx.GraphModule, after: Thread) -> fx.GraphModule:
    module.meta["thread"] = after
    module.graph.lint()
    module.recompile()
    return module


def expand_layers(vision: fx.GraphModule, sites: Sequence[str]) -> fx.GraphModule:
    """A new graph in which the layers at `sites` are two nodes each, attention and MLP; `vision` is untouched.

    The first carries the site `<site>.attention`, where tokens have attended and not yet passed the MLP.
    """
    module = clone(vision)
    for site in sites:
        node = node_at(module, site)
        block = module.get_submodule(str(node.target))
        assert isinstance(block, VisionBlock)
        name = str(node.target).replace(".", "_")
        module.add_submodule(f"{name}_attend", Attend(block))
        module.add_submodule(f"{name}_feed", Feed(block))
        with module.graph.inserting_before(node):
            attended = module.graph.call_module(f"{name}_attend", node.args)
            fed = module.graph.call_module(f"{name}_feed", (attended,))
        attended.meta["site"], fed.meta["site"] = f"{site}{ATTENTION}", site
        node.replace_all_uses_with(fed)
        module.graph.erase_node(node)
    module.delete_all_unused_submodules()
    module.graph.lint()
    module.recompile()
    return module


class _Constant(nn.Module):
    """The same numbers int64 [n] for every row of a batch: [batch, n]."""

    values: Tensor

    def __init__(self, values: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("values", torch.tensor(values), persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        return self.values.to(rows.device).unsqueeze(0).expand(rows.shape[0], -1)


def _resize(module: fx.GraphModule, graphs: TokenGraphs, stage: Stage) -> Thread:
    vision, grid = graphs.geometry.vision, stage.grid
    assert grid is not None and grid[0] * grid[1] == stage.keep
    node = next(n for n in module.graph.nodes if n.target == "embeddings")
    patches = ResizedPatches(graphs.parts.patches, grid, patch=vision.patch_size, side=vision.image_size)
    module.add_submodule("resized_embeddings", patches)
    module.add_submodule("select_index_pixels", _Constant(centres(grid, vision.grid)))
    with module.graph.inserting_before(node):
        rows = module.graph.call_module("resized_embeddings", node.args)
        index = module.graph.call_module("select_index_pixels", (rows,))
    node.replace_all_uses_with(rows)
    module.graph.erase_node(node)
    module.delete_all_unused_submodules()
    features, kept = results(module)
    give(module, features, {**kept, stage.site: index})
    return Thread(count=stage.keep, index=index.name)
