"""The pass that carves: one stage into one graph, a plan as a fold over stages.

Every node that belongs to selection is a module called `select_<what>_<site>`, so exported nodes and profiles can be
told apart from the model's own work.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import Node

from tokcarve.passes import choose
from tokcarve.passes.errors import MethodError, TapNotFound
from tokcarve.passes.graph import Thread, TokenGraphs, clone, node_at, thread
from tokcarve.passes.stage import Rule, Stage
from tokcarve.passes.taps import TAPS, Tokens, needs_cls

__all__ = ["RewriteResult", "StageRecord", "insert_stage", "rewrite"]


@dataclass(frozen=True, kw_only=True)
class StageRecord:
    """One reduction as it stands in the graph: `total` tokens before the site, `keep` after it."""

    site: str
    total: int
    keep: int
    how: str


@dataclass(frozen=True, kw_only=True)
class RewriteResult:
    """graphs: the new graphs, weights shared. schedule: the reductions in order. modified: whether any node changed."""

    graphs: TokenGraphs
    schedule: tuple[StageRecord, ...]
    modified: bool


class _Rule(nn.Module):
    def __init__(self, rule: Rule) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, signals: dict[str, Tensor], carry: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.rule(signals, carry)


class _Choose(nn.Module):
    def __init__(self, keep: int) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, score: Tensor, alive: Tensor | None = None) -> Tensor:
        return choose.top_in_order(score, self.keep, alive)


class _Take(nn.Module):
    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, rows: Tensor, index: Tensor) -> Tensor:
        return choose.take(rows, index, self.prefix)


class _Merge(nn.Module):
    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, rows: Tensor, weights: Tensor) -> Tensor:
        return choose.merge(rows, weights, self.prefix)


class _Alive(nn.Module):
    def forward(self, score: Tensor, count: Tensor, alive: Tensor | None = None) -> Tensor:
        return choose.alive_after(score, count, torch.ones_like(score, dtype=torch.bool) if alive is None else alive)


class _KeyMask(nn.Module):
    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, alive: Tensor) -> Tensor:
        mask = torch.cat([torch.ones_like(alive[:, : self.prefix]), alive], dim=1) if self.prefix else alive
        return mask[:, None, None, :]


def rewrite(graphs: TokenGraphs, stages: Sequence[Stage]) -> RewriteResult:
    """The graphs with every stage inserted in order; no stages leave them as they are.

    MethodError for a stage at a site the graph does not have, out of order, or with a tap the tower cannot serve.
    """
    total = graphs.geometry.total
    vision, schedule, rank = graphs.vision, [], -1
    for stage in stages:
        place = _rank(graphs, stage)
        if place <= rank:
            raise MethodError(f"stage at {stage.site} comes after a later site; order the stages by depth")
        if not 1 <= stage.keep <= total:
            raise MethodError(f"stage at {stage.site} keeps {stage.keep} of {total} tokens; choose 1..{total}")
        vision = insert_stage(vision, stage, prefix=graphs.geometry.vision.prefix)
        if stage.how != "observe":
            schedule.append(StageRecord(site=stage.site, total=total, keep=stage.keep, how=stage.how))
        rank, total = place, stage.keep
    carved = replace(graphs, vision=vision)
    return RewriteResult(graphs=carved, schedule=tuple(schedule), modified=bool(stages))


def _rank(graphs: TokenGraphs, stage: Stage) -> int:
    sites = [node.meta["site"] for node in graphs.vision.graph.nodes if "site" in node.meta]
    if stage.site not in sites:
        raise MethodError(f"no site {stage.site!r} in this graph; it has {', '.join(sites)}")
    unknown = [tap for tap in stage.reads if tap not in TAPS]
    if unknown:
        raise MethodError(f"stage at {stage.site} reads {unknown[0]!r}; taps are {', '.join(TAPS)}")
    of_blocks = [tap for tap in stage.reads if TAPS[tap] is not Tokens]
    if of_blocks and not stage.site.startswith("vision."):
        raise TapNotFound(f"stage at {stage.site} reads {of_blocks[0]!r}, which only a vision layer has; read it there")
    if needs_cls(stage.reads) and not graphs.geometry.vision.prefix:
        raise MethodError(
            f"the method reads the [CLS] row, and this {graphs.geometry.vision.kind} tower has no [CLS] token; "
            "choose a method that does not read cls_attention (see `tokcarve methods`)"
        )
    return sites.index(stage.site)


def insert_stage(module: fx.GraphModule, stage: Stage, *, prefix: int) -> fx.GraphModule:
    """A new vision graph with `stage` after its site; `module` is untouched.

    `prefix` rows before the first patch are never dropped (none are left after the connector).
    """
    module = clone(module)
    site = node_at(module, stage.site)
    inside = stage.site.startswith("vision.")
    work = _Carver(module, stage, prefix if inside else 0, site)
    before = thread(module)
    outcome = work.rule(before)
    carry = {name: work.item(outcome, name) for name in stage.carries}
    after = work.reduce(before, outcome, carry)
    module.meta["thread"] = after
    module.graph.lint()
    module.recompile()
    return module


class _Carver:
    """Writes the nodes of one stage behind its site, in order."""

    def __init__(self, module: fx.GraphModule, stage: Stage, prefix: int, site: Node) -> None:
        self.module, self.stage, self.prefix, self.site = module, stage, prefix, site
        self.tag = stage.site.replace("vision.layers.", "l").replace("language.layers.", "t")
        self.users = list(site.users)
        self.cursor = site

    def add(self, what: str, submodule: nn.Module, *args: Any) -> Node:
        """A module node behind everything written so far."""
        name = f"select_{what}_{self.tag}"
        self.module.add_submodule(name, submodule)
        with self.module.graph.inserting_after(self.cursor):
            self.cursor = self.module.graph.call_module(name, args)
        return self.cursor

    def item(self, outcome: Node, key: str) -> Node:
        """One named tensor of the rule's outcome."""
        with self.module.graph.inserting_after(self.cursor):
            self.cursor = self.module.graph.call_function(operator.getitem, (outcome, key))
        return self.cursor

    def named(self, name: str | None) -> Node | None:
        return None if name is None else node_at(self.module, name)

    def rule(self, before: Thread) -> Node:
        """The taps, then the method's own mathematics."""
        alive = self.named(before.alive)
        signals: dict[str, Node] = {} if alive is None else {"alive": alive}
        for tap in self.stage.reads:
            if TAPS[tap] is Tokens:
                signals[tap] = self.add(tap, Tokens(self.prefix), self.site)
                continue
            block = self.module.get_submodule(str(self.site.target))
            signals[tap] = self.add(tap, TAPS[tap](block), self.site.args[0], alive)
        carry = {name: self.named(node) for name, node in before.carry.items() if name in self.stage.carries}
        return self.add("rule", _Rule(self.stage.rule), signals, carry)

    def reduce(self, before: Thread, outcome: Node, carry: dict[str, Node]) -> Thread:
        """Drop, merge or mask, and what runs beside the tokens from here on."""
        how = self.stage.how
        if how == "observe":
            return replace(before, carry={k: v.name for k, v in carry.items()})
        if how == "mask":
            return self._mask(before, outcome, carry)
        if how == "choose":
            return self._choose(before, outcome, carry)
        weights, index = self.item(outcome, "weights"), self.item(outcome, "index")
        tokens = self.add("merge", _Merge(self.prefix), self.site, weights)
        if before.index is not None:
            index = self.add("index", _Take(0), self.named(before.index), index)
        self._rewire(tokens, index)
        if before.alive is not None:
            self._unmask(tokens)
        return Thread(count=self.stage.keep, index=index.name, carry={k: v.name for k, v in carry.items()})

    def _choose(self, before: Thread, outcome: Node, carry: dict[str, Node]) -> Thread:
        score = self.item(outcome, "score")
        index = chosen = self.add("choose", _Choose(self.stage.keep), score, self.named(before.alive))
        tokens = self.add("take", _Take(self.prefix), self.site, chosen)
        if before.index is not None:
            index = self.add("index", _Take(0), self.named(before.index), chosen)
        kept = {name: self.add(f"carry_{name}", _Take(0), node, chosen).name for name, node in carry.items()}
        self._rewire(tokens, index)
        if before.alive is not None:
            self._unmask(tokens)
        return Thread(count=self.stage.keep, index=index.name, carry=kept)

    def _mask(self, before: Thread, outcome: Node, carry: dict[str, Node]) -> Thread:
        score, count = self.item(outcome, "score"), self.item(outcome, "count")
        alive = self.add("alive", _Alive(), score, count, self.named(before.alive))
        mask = self.add("mask", _KeyMask(self.prefix), alive)
        for node in self._later_blocks(self.site):
            node.args = (node.args[0], mask)
        return replace(before, alive=alive.name, carry={k: v.name for k, v in carry.items()})

    def _later_blocks(self, start: Node) -> list[Node]:
        nodes = list(self.module.graph.nodes)
        later = nodes[nodes.index(start) + 1 :]
        return [n for n in later if str(n.meta.get("site", "")).startswith("vision.layers.")]

    def _unmask(self, tokens: Node) -> None:
        # after a real cut every token is alive again
        for node in self._later_blocks(tokens):
            node.args = (node.args[0],)

    def _rewire(self, tokens: Node, index: Node) -> None:
        for user in self.users:
            user.replace_input_with(self.site, tokens)
        output = next(iter(reversed(self.module.graph.nodes)))
        features, kept = output.args[0]
        output.args = ((tokens if features is self.site else features, {**kept, self.stage.site: index}),)
