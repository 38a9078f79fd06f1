"""From torch to ONNX: what is merged, what is called how, and that the numbers stay."""

from collections import Counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from models import SIDE, TOTAL, build
from torch import Tensor, nn

from tokcarve.exporters.modules import FaceGraph, face_graphs, shapes
from tokcarve.exporters.onnx import lower, weight_names
from tokcarve.passes import families
from tokcarve.passes.errors import ExportError
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.insert import rewrite
from tokcarve.passes.methods import METHODS

KEEP = 16


def carved(text: str = "llama", **settings: Any) -> tuple[nn.Module, TokenGraphs, TokenGraphs]:
    model = build(text, "clip", vision_layers=4, text_layers=2, **settings)  # type: ignore[arg-type]
    plain = families.capture(model)
    stages = METHODS["vtc_cls"]().stages(plain.geometry, KEEP, None)
    return model, plain, rewrite(plain, stages).graphs


def piece(graphs: TokenGraphs, name: str, tokens: int) -> FaceGraph:
    return face_graphs(graphs, shapes(graphs, tokens=tokens, batch=1, max_text=8, max_new=4))[name]


def onnx_of(face: FaceGraph, model: nn.Module, **options: Any) -> ir.Model:
    return lower(
        face.module,
        face.inputs,
        input_names=face.input_names,
        output_names=face.output_names,
        names=weight_names(model),
        **options,
    )


def count(graph: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in graph.graph)


def session(graph: ir.Model) -> Any:
    return onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def vision() -> tuple[nn.Module, ir.Model, ir.Model]:
    model, plain, pruned = carved()
    return model, onnx_of(piece(plain, "vision", TOTAL), model), onnx_of(piece(pruned, "vision", KEEP), model)


def test_a_tap_shares_the_projections_of_its_block(vision: tuple[nn.Module, ir.Model, ir.Model]) -> None:
    _, plain, pruned = vision
    taps = sum(node.name.endswith("/Softmax") for node in selection(pruned))
    extra = count(pruned)["MatMul"] - count(plain)["MatMul"]
    assert taps > 0
    assert extra == taps, "each tap adds its row-times-keys product and nothing else"
    assert count(pruned)["LayerNormalization"] == count(plain)["LayerNormalization"]


def selection(graph: ir.Model) -> list[ir.Node]:
    return [node for node in graph.graph if str(node.name).startswith("tokcarve_select/")]


def test_norms_of_heads_share_the_attention_of_their_block(vision: tuple[nn.Module, ir.Model, ir.Model]) -> None:
    model, full, _ = vision
    plain = families.capture(model)
    stages = METHODS["as_vit"]().stages(plain.geometry, KEEP, None)
    pruned = onnx_of(piece(rewrite(plain, stages).graphs, "vision", KEEP), model)
    more = count(pruned) - count(full)
    # only the rows of [CLS] attend once more, and a norm follows each attention
    assert (more["Softmax"], more["MatMul"], more["ReduceL2"]) == (len(stages),) * 3 and len(stages) == 3


def test_selection_is_named_and_the_blocks_are_not(vision: tuple[nn.Module, ir.Model, ir.Model]) -> None:
    _, plain, pruned = vision
    assert not selection(plain)
    names = {node.name for node in selection(pruned)}
    assert {node.op_type for node in selection(pruned)} >= {"Softmax", "TopK", "GatherElements"}
    assert not any("proj" in str(name) for name in names), "a shared projection belongs to the block"
    assert all("select_" not in str(node.name) for node in pruned.graph if node.name not in names)


def test_names_say_where_a_node_comes_from_and_are_unique(vision: tuple[nn.Module, ir.Model, ir.Model]) -> None:
    _, _, pruned = vision
    names = [str(node.name) for node in pruned.graph]
    assert len(set(names)) == len(names)
    assert any("layers.0" in name and name.endswith("q_proj/MatMul") for name in names)


def test_weights_keep_the_names_of_the_checkpoint(vision: tuple[nn.Module, ir.Model, ir.Model]) -> None:
    model, _, pruned = vision
    known = dict(model.named_parameters())
    large = [name for name, value in pruned.graph.initializers.items() if value.const_value.nbytes >= 1024]
    assert large
    assert all(name.removesuffix(".T") in known for name in large)


def test_standard_operators_only(vision: tuple[nn.Module, ir.Model, ir.Model]) -> None:
    for graph in vision[1:]:
        assert dict(graph.opset_imports) == {"": 18}
        assert not graph.functions
        assert all(node.domain == "" for node in graph.graph)
        onnx.checker.check_model(ir.to_proto(graph), full_check=True)


def test_no_source_path_is_left(vision: tuple[nn.Module, ir.Model, ir.Model]) -> None:
    text = ir.to_proto(vision[2]).SerializeToString()
    assert b".py" not in text
    assert b"site-packages" not in text


def test_lowering_again_gives_the_same_graph(vision: tuple[nn.Module, ir.Model, ir.Model]) -> None:
    model, _, pruned = vision
    again = onnx_of(piece(carved()[2], "vision", KEEP), model)
    assert ir.to_proto(again).SerializeToString() == ir.to_proto(pruned).SerializeToString()


def test_vision_equals_torch(vision: tuple[nn.Module, ir.Model, ir.Model]) -> None:
    _, _, pruned = vision
    face = piece(carved()[2], "vision", KEEP)
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    features, kept, places = face.module(pixels)
    found = session(pruned).run(None, {"pixel_values": pixels.numpy()})
    np.testing.assert_allclose(found[0], features.detach().numpy(), atol=1e-4)
    np.testing.assert_array_equal(found[1], kept.numpy())
    np.testing.assert_array_equal(found[2], places.numpy())


def test_keys_are_not_copied_per_query_head() -> None:
    model, _, pruned = carved("qwen2")
    graph = onnx_of(piece(pruned, "decode", KEEP), model)
    assert not any(node.op_type == "Expand" and "self_attn" in str(node.name) for node in graph.graph)


def test_prefill_gives_the_last_real_row_and_norms_can_be_fused() -> None:
    model, _, pruned = carved()
    face = piece(pruned, "prefill", KEEP)
    graph = onnx_of(face, model)
    ops = count(graph)
    assert ops["Reciprocal"] == 0, "x / sqrt(v) is the form that ONNX Runtime fuses"
    assert ops["Div"] >= 5
    rows = face.inputs[0].shape[1]
    embeds = torch.randn(face.inputs[0].shape, generator=torch.Generator().manual_seed(2))
    for length in (rows, rows - 5):
        lengths = torch.tensor([length])
        logits, _, _ = pruned.language(embeds, face.inputs[1], lengths)
        feeds = dict(zip(face.input_names, (embeds, face.inputs[1], lengths), strict=True))
        found = session(graph).run(["logits"], {name: value.numpy() for name, value in feeds.items()})[0]
        np.testing.assert_allclose(found[0, 0], logits[0, length - 1].detach().numpy(), atol=1e-4)


def test_a_tied_head_reads_the_embedding_table_as_it_is() -> None:
    model, _, pruned = carved(tie_word_embeddings=True)
    model.tie_weights()  # type: ignore[operator]
    table = "model.language_model.embed_tokens.weight"
    face = piece(families.capture(model), "decode", TOTAL)
    graph = onnx_of(face, model, as_stored=(table,))
    users = {user.op_type for user, _ in graph.graph.initializers[table].uses()}
    assert users == {"Gather", "Gemm"}
    assert f"{table}.T" not in graph.graph.initializers
    feeds = {name: value.numpy() for name, value in zip(face.input_names, face.inputs, strict=True)}
    expected = face.module(*face.inputs)[0].detach().numpy()
    np.testing.assert_allclose(session(graph).run(["logits"], feeds)[0], expected, atol=1e-4)


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4, dtype=torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.patches(x.to(torch.bfloat16))
        return torch.relu(out)


def test_bfloat16_convolutions_are_between_casts_and_their_weights_stay_narrow() -> None:
    """Opset 18 has none in bfloat16."""
    module = Convolution()
    model = lower(module, (torch.ones(1, 3, 8, 8),), input_names=["x"], output_names=["y"], names=weight_names(module))
    found = next(node for node in model.graph if node.op_type == "Conv")
    assert {value.dtype for value in (*found.inputs, *found.outputs) if value is not None} == {ir.DataType.FLOAT}
    assert model.graph.initializers["patches.weight"].dtype == ir.DataType.BFLOAT16
    assert model.graph.outputs[0].dtype == ir.DataType.BFLOAT16
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


class Dynamic(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0]


def test_what_cannot_be_static_is_refused_in_one_sentence() -> None:
    with pytest.raises(ExportError, match="Dynamic cannot be written") as error:
        lower(Dynamic(), (torch.ones(4),), input_names=["x"], output_names=["y"])
    assert "\n" not in str(error.value)


def test_names_and_inputs_must_agree() -> None:
    with pytest.raises(ExportError, match="2 example tensors"):
        lower(nn.Identity(), (torch.ones(1), torch.ones(1)), input_names=["x"], output_names=["y"])
