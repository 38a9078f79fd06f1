"""Layers that are traced once and repeated give the graph that tracing all of them gives, node by node."""

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from models import build
from torch import nn

from tokcarve.exporters import onnx, repeats, trace
from tokcarve.exporters.growing import growing_text
from tokcarve.exporters.modules import FaceGraph, face_graphs, shapes
from tokcarve.exporters.onnx import lower, weight_names
from tokcarve.exporters.tensors import SMALL, identity
from tokcarve.passes import families
from tokcarve.passes.blocks import VisionBlock
from tokcarve.passes.errors import ExportError
from tokcarve.passes.graph import TokenGraphs, thread
from tokcarve.passes.insert import rewrite
from tokcarve.passes.methods import METHODS

LAYERS = {"vision_layers": 4, "text_layers": 3}
KEEP = 16


def carved(method: str, text: str = "llama", tower: str = "clip") -> tuple[Any, TokenGraphs]:
    model = build(text, tower, **LAYERS)  # type: ignore[arg-type]
    plain = families.capture(model)
    return model, rewrite(plain, list(METHODS[method]().stages(plain.geometry, KEEP, None))).graphs


def onnx_of(piece: FaceGraph, model: nn.Module, **options: Any) -> ir.Model:
    names = {"input_names": piece.input_names, "output_names": piece.output_names, "opens": piece.opens}
    return lower(piece.module, piece.inputs, names=weight_names(model), **names, **options)


def written(graph: ir.Graph) -> list[Any]:
    """Everything of a graph but the names of values between its ends."""
    numbers: dict[ir.Value, int] = {}

    def told(value: ir.Value | None) -> Any:
        if value is None or value.const_value is None:
            return value and numbers.setdefault(value, len(numbers))
        return (identity(value.const_value), "" if value.const_value.nbytes < SMALL else value.name)

    ends = [(value.name, told(value), str(value.shape)) for value in graph.inputs]
    nodes = [
        (
            (node.name, node.op_type, [told(value) for value in node.inputs]),
            [(name, str(one.value)) for name, one in sorted(node.attributes.items())],
            [(told(value), value.shape, value.dtype) for value in node.outputs],
        )
        for node in graph
    ]
    return [ends, nodes, [(value.name, told(value), str(value.shape)) for value in graph.outputs]]


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[nn.Module]]:
    """What a kind was traced of, beginning with none remembered."""
    seen: list[nn.Module] = []

    def watched(module: nn.Module, *inputs: Any, **options: Any) -> ir.Model:
        seen.append(module)
        return trace.trace(module, *inputs, **options)

    monkeypatch.setattr(repeats, "_KINDS", type(repeats._KINDS)())
    monkeypatch.setattr(repeats, "trace", watched)
    yield seen


@pytest.mark.parametrize(
    ("method", "text", "tower", "kinds"),
    [
        # vision layers of one length, text at the prompt's, and one row behind as many
        ("vtc_cls", "llama", "clip", 3),
        # two halves of every vision layer, every one shorter than the last: nothing repeats but the text
        ("tome", "qwen2", "siglip", 10),
        # a stage inside the language model: its layers see two lengths, and behind each has a cache of its own
        ("fastv", "mistral", "clip", 5),
    ],
)
def test_a_repeated_layer_is_the_layer(
    method: str, text: str, tower: str, kinds: int, traced: list[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, graphs = carved(method, text, tower)
    sizes = shapes(graphs, tokens=thread(graphs.vision).count, batch=2, max_text=8, max_new=4)
    pieces = face_graphs(graphs, sizes)
    short = {name: onnx_of(piece, model) for name, piece in pieces.items()}
    assert len(traced) == kinds
    monkeypatch.setattr(onnx, "stand_ins", lambda module: contextlib.nullcontext([]))
    for name, piece in pieces.items():
        whole = onnx_of(piece, model)
        assert written(short[name].graph) == written(whole.graph), name
        assert short[name].opset_imports == whole.opset_imports


def test_another_model_of_the_same_shape_needs_no_trace(traced: list[nn.Module]) -> None:
    for seed in (0, 1):
        model = build("llama", seed=seed, **LAYERS)
        graphs = families.capture(model)
        made = onnx_of(face_graphs(graphs, shapes(graphs, batch=1, max_text=8, max_new=4))["vision"], model)
        ours = {one.data_ptr() for one in model.parameters()}
        weights = [one.const_value for one in made.graph.initializers.values() if one.const_value.nbytes >= SMALL]
        assert weights and all(weight.raw.data_ptr() in ours for weight in weights), "a weight of another model"
    assert len(traced) == 1
    kept = next(iter(repeats._KINDS.values()))
    assert kept.weights and all(kept.graph.initializers[name].const_value is None for name in kept.weights)


@pytest.mark.parametrize(
    ("where", "attribute", "value"),
    [("layer.layer_norm1", "eps", 0.5), ("layer.self_attn", "scale", 2.0), ("layer.mlp", "activation_fn", nn.ReLU())],
)
def test_what_differs_in_more_than_weights_is_no_repetition(
    where: str, attribute: str, value: Any, traced: list[nn.Module]
) -> None:
    model = build("llama", seed=5, **LAYERS)
    blocks = families.capture(model).parts.vision_blocks
    two = nn.Sequential(*blocks[:2])
    rows = torch.rand(1, 5, 32)
    part = blocks[1].get_submodule(where)
    before = getattr(part, attribute)
    lower(two, (rows,), input_names=["x"], output_names=["y"])
    assert len(traced) == 1
    try:
        setattr(part, attribute, value)
        lower(two, (rows,), input_names=["x"], output_names=["y"])
    finally:
        setattr(part, attribute, before)
    assert len(traced) == 2


def changed(layer: Any, what: str) -> None:
    """Another computation, where torch shows nothing of it in weights or settings."""
    mlp = layer.mlp
    if what == "hook":
        mlp.register_forward_hook(lambda module, inputs, output: output * 2)
    elif what == "forward":
        mlp.forward = lambda rows, own=mlp.forward: own(rows) * 2
    else:
        layer._twice = True
        kind = type(mlp)
        mlp.__class__ = type("Doubling", (kind,), {"forward": lambda self, rows: 2 * kind.forward(self, rows)})


@pytest.mark.parametrize("what", ["hook", "forward", "class"])
def test_what_torch_hides_makes_another_kind(what: str, traced: list[nn.Module]) -> None:
    model = copy.deepcopy(build("llama", seed=6, **LAYERS))
    blocks = families.capture(model).parts.vision_blocks[:2]
    changed(blocks[1].layer, what)
    two, rows = nn.Sequential(*blocks), torch.rand(1, 5, 32)
    check_numbers(two, rows)
    assert len(traced) == 2


def check_numbers(module: nn.Module, rows: torch.Tensor) -> None:
    """That the graph computes what `module` does."""
    made = lower(module, (rows,), input_names=["x"], output_names=["y"])
    session = onnxruntime.InferenceSession(ir.to_proto(made).SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        np.testing.assert_allclose(session.run(None, {"x": rows.numpy()})[0], module(rows), atol=1e-5)


def test_a_weight_with_two_names_is_each_layers_own(traced: list[nn.Module]) -> None:
    model = copy.deepcopy(build("llama", seed=6, **LAYERS))
    blocks = families.capture(model).parts.vision_blocks[:2]
    for block in blocks:
        block.layer.self_attn.v_proj.weight = block.layer.self_attn.k_proj.weight
    two, rows = nn.Sequential(*blocks), torch.rand(1, 5, 32)
    check_numbers(two, rows)
    assert len(traced) == 1


def test_a_block_that_runs_twice(traced: list[nn.Module]) -> None:
    model = build("llama", **LAYERS)
    block = families.capture(model).parts.vision_blocks[0]
    made = lower(nn.Sequential(block, block), (torch.rand(1, 5, 32),), input_names=["x"], output_names=["y"])
    assert sum(node.op_type == "Softmax" for node in made.graph) == 2
    assert len({node.name for node in made.graph}) == len(list(made.graph))
    assert len(traced) == 1


def test_layers_with_open_dimensions_are_one_kind(traced: list[nn.Module]) -> None:
    model = build("llama", **LAYERS)
    made = onnx_of(growing_text(families.capture(model)), model)
    assert len(traced) == 1
    named = {"sequence_length", "past_sequence_length", "total_sequence_length"}
    ends = [size for value in (*made.graph.inputs, *made.graph.outputs) for size in value.shape or ()]
    assert {str(size) for size in ends if not isinstance(size, int)} == named


def test_a_block_is_itself_again_after_a_failure() -> None:
    model = build("llama", **LAYERS)
    block = families.capture(model).parts.vision_blocks[0]

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block: VisionBlock = block

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.block(x)[:, : int(x.sum())]

    with pytest.raises(ExportError, match="Broken cannot be written as ONNX"):
        lower(Broken(), (torch.rand(1, 5, 32),), input_names=["x"], output_names=["y"])
    assert "forward" not in vars(block)
