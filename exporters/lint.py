"""What TensorRT will not build, found in the ONNX graph by rules before anything is built."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common

from tokcarve.exporters.lint_rules import ALL, GRAPH_RULES, RULES, GraphRule, Rule

__all__ = ["Finding", "lint", "lint_file"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One node (or input, or the whole graph) that the versions in `ranges` refuse, why, and what to do."""

    rule: str
    node: str
    op: str
    detail: str
    remedy: str
    ranges: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.op} {self.node!r} ({self.rule}, TensorRT {', '.join(self.ranges)}): {self.detail}; {self.remedy}"


def lint_file(path: Path, ranges: Iterable[str] = ALL) -> list[Finding]:
    """The findings of the graph in `path`; weights are not read."""
    return lint(ir.load(path), ranges)


def lint(model: ir.Model, ranges: Iterable[str] = ALL) -> list[Finding]:
    """What the TensorRT versions in `ranges` would refuse in `model`, in the order of its nodes; empty when nothing.

    Shapes that the file does not state are inferred; `model` gains them.
    """
    wanted = frozenset(ranges)
    common.ShapeInferencePass(data_prop=False)(model)
    return [
        Finding(
            rule=rule.name,
            node=node,
            op=op,
            detail=detail,
            remedy=rule.remedy,
            ranges=tuple(one for one in rule.ranges if one in wanted),
        )
        for rule, op, node, detail in _broken(model)
        if not wanted.isdisjoint(rule.ranges)
    ]


def _broken(model: ir.Model) -> Iterator[tuple[Rule | GraphRule, str, str, str]]:
    """Every rule that does not hold, with the kind and the name of what breaks it, and how."""
    for whole in GRAPH_RULES:
        for op, name, detail in whole.check(model):
            yield whole, op, name, detail
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for rule in RULES:
            found = rule.check(node)
            if found is not None:
                yield rule, node.op_type, node.name or "(unnamed)", found
