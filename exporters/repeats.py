"""A model's blocks, each kind of them lowered once: a layer is one node of the graph that torch traces, and becomes the
nodes of its kind with the layer's own weights.

Tracing is most of an export's time, and the layers of a model differ in nothing but their weights; so do those of its
pruned and its unpruned graphs that see as many rows.
"""

import contextlib
import inspect
import json
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from onnx_ir.passes import common
from torch import Tensor, nn

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


_KINDS: OrderedDict[Any, _Kind] = OrderedDict()


@contextlib.contextmanager
def stand_ins(module: nn.Module | None) -> Iterator[list[nn.Module]]:
    """While it lasts, every block below `module` is traced as one node, which `put_blocks` finds in the list."""
    found = [one for one in module.modules() if type(one) in _GIVES] if module is not None else []
    blocks = [one for one in found if not any(one is inner for outer in found for inner in list(outer.modules())[1:])]
    try:
        for place, block in enumerate(blocks):
            object.__setattr__(block, "forward", _stand_in(block, place))
        yield blocks
    finally:
        for block in blocks:
            object.__delattr__(block, "forward")


def _stand_in(block: nn.Module, place: int) -> Callable[..., Any]:
    def forward(*inputs: Tensor | None, **named: Tensor | None) -> Any:
        inputs = inspect.signature(type(block).forward).bind(block, *inputs, **named).args[1:]
        given = _GIVES[type(block)](block, *inputs)
        hidden = inputs[0]
        assert hidden is not None
        made = torch.onnx.ops.symbolic_multi_out(
            f"{_DOMAIN}::{_NODE}",
            inputs,
            {_WHICH: place},
            dtypes=(hidden.dtype,) * len(given),
            shapes=given,
            version=1,
        )
        return made[0] if len(given) == 1 else tuple(made)

    return forward


def put_blocks(model: ir.Model, blocks: list[nn.Module], opset: int) -> None:
    """Replaces every node that stands for one of `blocks` by what it stands for, in place."""
    graph = model.graph
    for node in [one for one in graph if one.domain == _DOMAIN and one.op_type == _NODE]:
        block = blocks[node.attributes[_WHICH].as_int()]
        _put(graph, node, block, _kind(block, node, opset))
    model.opset_imports.pop(_DOMAIN, None)


def _put(graph: ir.Graph, node: ir.Node, block: nn.Module, kind: _Kind) -> None:
    outer = scopes(node)[:-1]
    place = outer[-1] if outer else ""
    # a block that runs twice has one place and two nodes
    stem = f"{place}/{node.outputs[0].name}"
    values: dict[ir.Value | None, ir.Value | None] = {None: None}
    values.update(zip(kind.graph.inputs, (value for value in node.inputs if value is not None), strict=True))
    tensors = dict((*block.named_parameters(), *block.named_buffers()))
    for name, value in kind.graph.initializers.items():
        weight = kind.weights.get(name)
        called = f"{stem}/{name}" if weight is None else f"{place}.{weight}"
        if called not in graph.initializers:
            tensor = value.const_value if weight is None else ir.tensor_adapters.TorchTensor(tensors[weight])
            graph.register_initializer(
                ir.Value(name=called, shape=value.shape, type=value.type, const_value=tensor)
            )
        values[value] = graph.initializers[called]
    copies = [_copy(inner, values, stem, outer) for inner in kind.graph]
    made = [values[value] for value in kind.graph.outputs]
    ir.convenience.replace_nodes_and_values(graph, node, [node], copies, node.outputs, made)


def _copy(inner: ir.Node, values: dict[ir.Value | None, ir.Value | None], stem: str, outer: list[str]) -> ir.Node:
    """A node of a kind in the place of one block, with what it reads there; what it makes is put into `values`."""
    copy = ir.Node(
        inner.domain,
        inner.op_type,
        [values[value] for value in inner.inputs],
        list(inner.attributes.values()),
        num_outputs=len(inner.outputs),
        name=f"{stem}/{inner.name}",
    )
    for ours, theirs in zip(copy.outputs, inner.outputs, strict=True):
        ours.name, ours.shape, ours.type = f"{stem}/{theirs.name}", theirs.shape, theirs.type
        values[theirs] = ours
    *modules, name = scopes(inner)
    place = outer[-1] if outer else ""
    inside = (part.removeprefix(_HELD).removeprefix(".") for part in modules)
    copy.metadata_props.update(inner.metadata_props)
    copy.metadata_props[SCOPES] = str([*outer, *(f"{place}.{part}".strip(".") for part in inside if part), name])
    return copy


class _Held(nn.Module):
    """A block at the inputs that it is given; the others are None."""

    def __init__(self, block: nn.Module, given: list[bool]) -> None:
        super().__init__()
        self.block = block
        self.given = given

    def forward(self, *inputs: Tensor) -> Any:
        one = iter(inputs)
        return self.block(*(next(one) if given else None for given in self.given))


def _kind(block: nn.Module, node: ir.Node, opset: int) -> _Kind:
    """The nodes of such a block at the shapes that `node` sees."""
    seen = tuple(None if value is None else (value.dtype, tuple(value.shape or ())) for value in node.inputs)
    state, held = _state(block)
    key = (opset, seen, state)
    if key not in _KINDS:
        _KINDS[key] = _lowered(block, node, opset, held)
        while len(_KINDS) > _KEPT:
            _KINDS.popitem(last=False)
    _KINDS.move_to_end(key)
    return _KINDS[key]


def _lowered(block: nn.Module, node: ir.Node, opset: int, held: tuple[Any, ...]) -> _Kind:
    given = [value for value in node.inputs if value is not None]
    examples = tuple(_example(value) for value in given)
    names = [f"input_{i}" for i in range(len(given))]
    module = _Held(block, [value is not None for value in node.inputs])
    model = trace(module, examples, input_names=names, opset=opset)
    common.InlinePass()(model)
    graph = model.graph
    for ours, theirs in zip(node.outputs, graph.outputs, strict=True):
        assert ours.shape == theirs.shape and ours.dtype == theirs.dtype, (type(block), ours, theirs)
    tensors = {name for name, _ in (*block.named_parameters(), *block.named_buffers())}
    inside = {name: name.removeprefix(f"{_HELD}.") for name in graph.initializers}
    weights = {name: weight for name, weight in inside.items() if weight in tensors}
    for name in weights:
        # a kind is no reason to keep a model in memory
        graph.initializers[name].const_value = None
    return _Kind(graph=graph, weights=weights, held=held)


def _example(value: ir.Value) -> Tensor:
    from onnx_ir.tensor_adapters import to_torch_dtype

    assert value.shape is not None and value.dtype is not None
    return torch.zeros(tuple(int(size) for size in value.shape), dtype=to_torch_dtype(value.dtype))


def _state(block: nn.Module) -> tuple[Any, tuple[Any, ...]]:
    """All that makes a block what it is but the values of its weights, and objects that are known by their identity."""
    held: list[Any] = []

    def told(value: Any) -> Any:
        if isinstance(value, (bool, int, float, str, type(None), torch.dtype, type)):
            return value
        if isinstance(value, (tuple, list)):
            return tuple(told(one) for one in value)
        if hasattr(value, "to_dict"):
            return json.dumps(value.to_dict(), sort_keys=True, default=str), getattr(value, "_attn_implementation", "")
        held.append(value)
        return id(value)

    modules = tuple(
        (name, type(one), tuple((key, told(value)) for key, value in sorted(vars(one).items()) if _tells(key)))
        for name, one in block.named_modules()
    )
    tensors = tuple(
        (name, tensor.dtype, tuple(tensor.shape), tensor.stride())
        for name, tensor in (*block.named_parameters(), *block.named_buffers())
    )
    return (modules, tensors), tuple(held)


def _tells(attribute: str) -> bool:
    # torch's own dictionaries; a layer's number, which says where its cache is, and the cache is given
    return not attribute.startswith("_") and attribute not in ("layer_idx", "training", "forward")
