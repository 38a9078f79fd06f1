"""What writing a stage into any graph needs: the modules of a selection, and nodes in order behind a site.

Every node that belongs to selection is a module called `select_<what>_<site>`, so exported nodes and profiles can be
told apart from the model's own work.
"""

import operator
from typing import Any

from torch import Tensor, fx, nn
from torch.fx import Node

from tokcarve.passes import choose
from tokcarve.passes.graph import Thread, node_at
from tokcarve.passes.stage import Rule as PureRule
from tokcarve.passes.stage import Stage

__all__ = ["Choose", "Rule", "Take", "Writer", "module_name"]


def module_name(what: str, site: str) -> str:
    """What the module that does `what` of the selection at a site is called: "rule", "choose", "alive" and so on."""
    tag = site.replace("vision.layers.", "l").replace("language.layers.", "t").replace(".", "_")
    return f"select_{what}_{tag}"


class Rule(nn.Module):
    """A method's rule as a module."""

    def __init__(self, rule: PureRule) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, signals: dict[str, Tensor], carry: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.rule(signals, carry)


class Choose(nn.Module):
    """Scores [batch, n] -> the `keep` best of them, int64 [batch, keep], ascending."""

    def __init__(self, keep: int) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, score: Tensor, alive: Tensor | None = None) -> Tensor:
        return choose.top_in_order(score, self.keep, alive)


class Take(nn.Module):
    """Rows [batch, prefix + n, ...] -> those at an index [batch, keep], the prefix first."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, rows: Tensor, index: Tensor) -> Tensor:
        return choose.take(rows, index, self.prefix)


class Writer:
    """Writes nodes of one stage into `module`, which it changes; `site` is the node behind which everything goes."""

    def __init__(self, module: fx.GraphModule, stage: Stage) -> None:
        self.module, self.stage = module, stage
        self.site = node_at(module, stage.site)
        self.users = list(self.site.users)
        self.cursor = self.site

    def tap(self, name: str) -> Node:
        """The node that gives what the stage reads under `name`."""
        raise NotImplementedError

    def add(self, what: str, submodule: nn.Module, *args: Any) -> Node:
        """A module node behind everything written so far."""
        name = module_name(what, self.stage.site)
        self.module.add_submodule(name, submodule)
        with self.module.graph.inserting_after(self.cursor):
            self.cursor = self.module.graph.call_module(name, args)
        return self.cursor

    def item(self, outcome: Node, key: str | int) -> Node:
        """One entry of what a node gives."""
        with self.module.graph.inserting_after(self.cursor):
            self.cursor = self.module.graph.call_function(operator.getitem, (outcome, key))
        return self.cursor

    def named(self, name: str | None) -> Node | None:
        """The node of that name; None for None."""
        return None if name is None else node_at(self.module, name)

    def rule(self, before: Thread) -> Node:
        """The stage's rule on its taps and on what the rules before it handed on."""
        alive = self.named(before.alive)
        signals: dict[str, Node] = {} if alive is None else {"alive": alive}
        for name in self.stage.reads:
            signals[name] = self.tap(name)
        carry = {name: self.named(node) for name, node in before.carry.items()}
        return self.add("rule", Rule(self.stage.rule), signals, carry)
