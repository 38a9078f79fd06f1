"""A graph as rows a person can read: what `tokcarve inspect` prints before and after."""

from dataclasses import dataclass

from torch import Tensor, fx

from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.invariants import propagate_language, propagate_vision

_TEXT = 10**6  # rows of text: no tensor is computed, so no model has a size like it

__all__ = ["NodeRow", "describe_language", "describe_vision"]


@dataclass(frozen=True, kw_only=True)
class NodeRow:
    """One node: its name, whether it is an input, a block of the model, part of a selection or plumbing, and the
    shape of its value with the batch as "B" and rows of text and n visual tokens as "T+n" (None where it is no single
    tensor)."""

    name: str
    part: str
    kind: str
    shape: tuple[int | str, ...] | None


def describe_vision(graphs: TokenGraphs) -> list[NodeRow]:
    """Every node of the vision graph that is a module or an input, in order, with shapes; needs no weights."""
    propagate_vision(graphs)
    return [
        _row(graphs.vision, node) for node in graphs.vision.graph.nodes if node.op in ("placeholder", "call_module")
    ]


def describe_language(graphs: TokenGraphs) -> list[NodeRow]:
    """Every module and input of the language graph, in order, with shapes; needs no weights."""
    propagate_language(graphs, text=_TEXT)
    module = graphs.language
    return [_row(module, node) for node in module.graph.nodes if node.op in ("placeholder", "call_module")]


def _row(module: fx.GraphModule, node: fx.Node) -> NodeRow:
    name = str(node.target)
    if node.op == "placeholder":
        part, kind = "input", "tensor"
    else:
        part = "select" if name.startswith("select_") else "model"
        kind = _kind(module, name)
    value = node.meta.get("val")
    # a layer gives its rows first, then keys and values
    value = value[0] if isinstance(value, tuple) and name.startswith(("layers.", "lean_")) else value
    shape = ("B", *map(_extent, value.shape[1:])) if isinstance(value, Tensor) and value.dim() > 0 else None
    return NodeRow(name=name, part=part, kind=kind, shape=shape)


def _extent(size: int) -> int | str:
    return size if size < _TEXT // 2 else "T" if size == _TEXT else f"T{size - _TEXT:+d}"


def _kind(module: fx.GraphModule, name: str) -> str:
    found = module.get_submodule(name)
    inner = getattr(found, "layer", None)
    return type(inner if inner is not None else found).__name__.lstrip("_")
