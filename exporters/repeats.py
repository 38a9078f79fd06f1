"""A model's blocks, each kind of them lowered once: a layer is one node of the graph that torch traces, and becomes the
nodes of its kind with the layer's own weights.

Tracing is most of an export's time, and the layers of a model differ in nothing but their weights; so do those of its
pruned and its unpruned graphs that see as many rows.
"""

import contextlib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.tensor_adapters import to_torch_dtype
from torch import Tensor, fx, nn

from tokcarve.exporters.cleanup import fold
from tokcarve.exporters.fingerprint import fingerprint, tensors_of
from tokcarve.exporters.rewrites import SCOPES, scopes
from tokcarve.exporters.trace import trace
from tokcarve.passes.blocks import Attend, Feed, VisionBlock
from tokcarve.passes.text_blocks import TextBlock

__all__ = ["put_blocks", "stand_ins"]

_DOMAIN, _NODE, _WHICH = "tokcarve", "Block", "block"
_HELD = "block"
"""What a block is called in the module that holds it while its kind is traced."""
_KEPT = 64
"""Kinds that are remembered: those of a few exports."""

_Shapes = tuple[torch.Size, ...]


def _same(block: Any, hidden: Tensor, *rest: Any) -> _Shapes:
    return (hidden.shape,)


def _with_cache(block: TextBlock, hidden: Tensor, *rest: Any) -> _Shapes:
    batch, rows, _ = hidden.shape
    heads = block.layer.get_submodule("self_attn.k_proj").out_features // block.head_dim
    cache = torch.Size((batch, heads, rows, block.head_dim))
    return hidden.shape, cache, cache


_GIVES: dict[type[nn.Module], Callable[..., _Shapes]] = {
    VisionBlock: _same,
    Attend: _same,
    Feed: _same,
    TextBlock: _with_cache,
}
"""The blocks that repeat, and the shapes of what they give, all in the dtype of the rows."""


@dataclass(frozen=True)
class _Kind:
    """The nodes of a block: initializers that `weights` names by the module's names for them hold nothing; `held` keeps
    what the kind is recognised by."""

    graph: ir.Graph
    weights: dict[str, str]
    held: tuple[Any, ...]


@dataclass(frozen=True)
class _Use:
    """A block where it is called, and the sizes of the tensors that it is given there: of an open dimension that of
    the example."""

    block: nn.Module
    sizes: tuple[tuple[int, ...], ...]


_KINDS: OrderedDict[Any, _Kind] = OrderedDict()


@contextlib.contextmanager
def stand_ins(module: nn.Module) -> Iterator[list[_Use]]:
    """While it lasts, every block below `module` is traced as one node, which `put_blocks` finds in the list."""
    found = [one for one in module.modules() if type(one) in _GIVES]
    nested = {id(inner) for outer in found for inner in outer.modules() if inner is not outer}
    blocks, uses = [one for one in found if id(one) not in nested], list[_Use]()
    outer = {id(one) for one in blocks}
    graphs = [one for one in module.modules() if isinstance(one, fx.GraphModule)]
    calls = [call for graph in graphs for call in _calls(graph) if id(call[2]) in outer]
    for block in blocks:
        object.__setattr__(block, "forward", _stand_in(block, uses))
    try:
        for holder, name, block in calls:
            setattr(holder, name, _Hollow(block))
        yield uses
    finally:
        for holder, name, block in calls:
            setattr(holder, name, block)
        for block in blocks:
            object.__delattr__(block, "forward")


def _calls(graph: fx.GraphModule) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Every module that `graph` calls, and below what and by which name it does."""
    for target in dict.fromkeys(str(node.target) for node in graph.graph.nodes if node.op == "call_module"):
        place, _, name = target.rpartition(".")
        yield graph.get_submodule(place), name, graph.get_submodule(target)


class _Hollow(nn.Module):
    """A block without its weights, for a graph, which does nothing but call it: torch copies every weight that it is
    shown several times over, used or not."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.forward = block.forward


def _stand_in(block: nn.Module, uses: list[_Use]) -> Callable[..., Any]:
    """A `forward` that computes nothing, and notes in `uses` what it was given."""
    arguments = inspect.signature(type(block).forward)

    def forward(*inputs: Tensor | None, **named: Tensor | None) -> Any:
        given = arguments.bind(block, *inputs, **named).args[1:]
        shapes = _GIVES[type(block)](block, *given)
        sizes = tuple(tuple(map(_hint, one.shape)) for one in given if one is not None)
        uses.append(_Use(block=block, sizes=sizes))
        made = torch.onnx.ops.symbolic_multi_out(
            f"{_DOMAIN}::{_NODE}",
            given,
            {_WHICH: len(uses) - 1},
            dtypes=(given[0].dtype,) * len(shapes),
            shapes=shapes,
            version=1,
        )
        return made[0] if len(shapes) == 1 else tuple(made)

    return forward


def _hint(size: int | torch.SymInt) -> int:
    """What an open dimension is in the example."""
    return int(size.node.hint) if isinstance(size, torch.SymInt) else size


def put_blocks(model: ir.Model, uses: list[_Use], opset: int) -> None:
    """Replaces every node that stands for a block, as noted in `uses`, by what it stands for, in place."""
    graph = model.graph
    for node in [one for one in graph if one.domain == _DOMAIN and one.op_type == _NODE]:
        use = uses[node.attributes[_WHICH].as_int()]
        _put(graph, node, use.block, _kind(use, node, opset))
    model.opset_imports.pop(_DOMAIN, None)


def _put(graph: ir.Graph, node: ir.Node, block: nn.Module, kind: _Kind) -> None:
    outer = scopes(node)[:-1]
    given = [value for value in node.inputs if value is not None]
    place = _Place(
        outer=outer,
        # a block that runs twice has one place and two nodes
        stem=f"{outer[-1] if outer else ''}/{node.outputs[0].name}",
        values={None: None, **dict(zip(kind.graph.inputs, given, strict=True))},
        sizes=dict(_renamed(kind.graph.inputs, given)),
    )
    tensors = tensors_of(block)
    for name, value in kind.graph.initializers.items():
        weight = kind.weights.get(name)
        called = f"{place.stem}/{name}" if weight is None else place.inside(weight)
        if called not in graph.initializers:
            tensor = value.const_value if weight is None else ir.tensor_adapters.TorchTensor(tensors[weight])
            graph.register_initializer(ir.Value(name=called, shape=value.shape, type=value.type, const_value=tensor))
        place.values[value] = graph.initializers[called]
    copies = [place.copy(inner) for inner in kind.graph]
    made = [place.values[value] for value in kind.graph.outputs]
    ir.convenience.replace_nodes_and_values(graph, node, [node], copies, node.outputs, made)


def _renamed(theirs: Sequence[ir.Value], ours: Sequence[ir.Value]) -> Iterator[tuple[str, Any]]:
    """Names of open dimensions as a kind has them -> as the graph has them; the first of several counts."""
    sizes = [
        pair for one, other in zip(theirs, ours, strict=True) for pair in zip(_sizes(one), _sizes(other), strict=True)
    ]
    return ((name, size) for name, size in reversed(sizes) if isinstance(name, str))


def _sizes(value: ir.Value) -> tuple[int | str, ...]:
    return tuple(size if isinstance(size, int) else str(size) for size in value.shape or ())


@dataclass(frozen=True)
class _Place:
    """Where the nodes of a kind are put: below modules, behind a stem of names; `values` and `sizes` are those of the
    graph by what they are in the kind."""

    outer: list[str]
    stem: str
    values: dict[ir.Value | None, ir.Value | None]
    sizes: dict[str, Any]

    def inside(self, name: str) -> str:
        """The name of a part of the block."""
        return f"{self.outer[-1] if self.outer else ''}.{name}".strip(".")

    def copy(self, node: ir.Node) -> ir.Node:
        """A node with what it reads here; what it makes is put into `values`."""
        made = ir.Node(
            node.domain,
            node.op_type,
            [self.values[value] for value in node.inputs],
            list(node.attributes.values()),
            num_outputs=len(node.outputs),
            name=f"{self.stem}/{node.name}",
        )
        for ours, theirs in zip(made.outputs, node.outputs, strict=True):
            ours.name, ours.type = f"{self.stem}/{theirs.name}", theirs.type
            if theirs.shape is not None:
                # one name of an open dimension is one size, so that a name of the kind's own cannot stay
                ours.shape = ir.Shape([self.sizes.get(n) if isinstance(n, str) else n for n in _sizes(theirs)])
            self.values[theirs] = ours
        *modules, name = scopes(node)
        parts = (part.removeprefix(_HELD).removeprefix(".") for part in modules)
        made.metadata_props.update(node.metadata_props)
        made.metadata_props[SCOPES] = str([*self.outer, *(self.inside(part) for part in parts if part), name])
        return made


class _Held(nn.Module):
    """A block at the inputs that it is given; the others are None."""

    def __init__(self, block: nn.Module, given: list[bool]) -> None:
        super().__init__()
        self.block = block
        self.given = given

    def forward(self, *inputs: Tensor) -> Any:
        one = iter(inputs)
        return self.block(*(next(one) if given else None for given in self.given))


def _kind(use: _Use, node: ir.Node, opset: int) -> _Kind:
    """The nodes of such a block at the shapes that `node` sees, whatever its open dimensions are called."""
    names = dict[str, str]()
    seen = tuple(
        None
        if value is None
        else (
            value.dtype,
            *(n if isinstance(n, int) else names.setdefault(n, f"open{len(names)}") for n in _sizes(value)),
        )
        for value in node.inputs
    )
    state, held = fingerprint(use.block)
    key = (opset, seen, state)
    if key not in _KINDS:
        _KINDS[key] = _lowered(use, node, opset, held)
        while len(_KINDS) > _KEPT:
            _KINDS.popitem(last=False)
    _KINDS.move_to_end(key)
    return _KINDS[key]


def _lowered(use: _Use, node: ir.Node, opset: int, held: tuple[Any, ...]) -> _Kind:
    given = {f"input_{i}": value for i, value in enumerate(one for one in node.inputs if one is not None)}
    examples = tuple(
        torch.zeros(sizes, dtype=to_torch_dtype(value.dtype))
        for sizes, value in zip(use.sizes, given.values(), strict=True)
    )
    opens = {name: {at: n for at, n in enumerate(_sizes(one)) if isinstance(n, str)} for name, one in given.items()}
    model = trace(
        _Held(use.block, [value is not None for value in node.inputs]),
        examples,
        input_names=list(given),
        opset=opset,
        opens=opens if any(opens.values()) else None,
    )
    fold(model)
    graph = model.graph
    for ours, theirs in zip(node.outputs, graph.outputs, strict=True):
        assert ours.dtype == theirs.dtype, (type(use.block), ours, theirs)
        assert len(_sizes(ours)) == len(_sizes(theirs)), (type(use.block), ours, theirs)
        assert all(a == b or isinstance(b, str) for a, b in zip(_sizes(ours), _sizes(theirs), strict=True))
    tensors = tensors_of(use.block)
    inside = {name: name.removeprefix(f"{_HELD}.") for name in graph.initializers}
    weights = {name: weight for name, weight in inside.items() if weight in tensors}
    for name in weights:
        # a kind is no reason to keep a model in memory
        graph.initializers[name].const_value = None
    return _Kind(graph=graph, weights=weights, held=held)
