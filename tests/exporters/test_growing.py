"""One graph with a growing cache against torch: prompts in one piece or several, padding, open dimensions."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from models import SIDE, TOTAL, build
from torch import nn

from tokcarve.exporters import growing
from tokcarve.exporters.columns import columns
from tokcarve.exporters.marked import marked_embedding
from tokcarve.exporters.modules import FaceGraph
from tokcarve.exporters.onnx import lower, weight_names
from tokcarve.exporters.wellformed import check_graph
from tokcarve.passes import families
from tokcarve.passes.asking import Question, ask
from tokcarve.passes.graph import TokenGraphs

NEW = 6


def onnx_of(piece: FaceGraph, model: nn.Module) -> ir.Model:
    return lower(
        piece.module,
        piece.inputs,
        input_names=piece.input_names,
        output_names=piece.output_names,
        names=weight_names(model),
        opens=piece.opens,
    )


def session(graph: ir.Model) -> Any:
    return onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString(), providers=["CPUExecutionProvider"])


class Loop:
    """The loop of a runtime: embeds, reads, appends."""

    def __init__(self, text: Any, merge: Any) -> None:
        self.text, self.merge = text, merge
        inputs = {one.name: one.shape for one in text.get_inputs()}
        self.past = {
            name: np.zeros([0 if isinstance(size, str) else size for size in shape], np.float32)
            for name, shape in inputs.items()
            if name.startswith("past_")
        }

    def __call__(self, ids: Any, features: Any = None, *, mask: Any = None, position: int | None = None) -> Any:
        hidden = self.merge.get_inputs()[1].shape[2]
        features = np.zeros((1, 0, hidden), np.float32) if features is None else features
        embeds = self.merge.run(None, {"input_ids": np.array([ids]), "image_features": features})[0]
        cached = self.past["past_key_values.0.key"].shape[2]
        feeds = {
            "inputs_embeds": embeds,
            "attention_mask": np.ones((1, cached + len(ids)), np.int64) if mask is None else mask,
            "position_ids": np.arange(len(ids))[None] + (cached if position is None else position),
        }
        logits, *made = self.text.run(None, {**feeds, **self.past})
        self.past = dict(zip(self.past, made, strict=True))
        return logits[0, -1]


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def model(request: pytest.FixtureRequest) -> tuple[TokenGraphs, Any, Any]:
    built = build(request.param, "clip", vision_layers=2, text_layers=2)
    plain = families.capture(built)
    return plain, *(
        session(onnx_of(one, built)) for one in (growing.growing_text(plain), growing.merged_embedding(plain))
    )


def question(graphs: TokenGraphs) -> Question:
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return Question(pixel_values=pixels, before=(5, 6), after=(7, 8, 9))


def test_it_says_what_torch_says(model: tuple[TokenGraphs, Any, Any]) -> None:
    graphs, *sessions = model
    asked = question(graphs)
    said, loop = ask(graphs, asked, NEW), Loop(*sessions)
    rows = [loop(asked.ids(graphs.geometry.image_token_id, TOTAL), said.seen.features.numpy())]
    for token in said.tokens[:-1]:
        rows.append(loop([token]))
    np.testing.assert_allclose(np.stack(rows), said.logits.numpy(), atol=1e-4)
    other = Loop(*sessions)([5, 6, 7, 8, 9])
    assert np.abs(other - said.logits[0].numpy()).max() > 1e-2, "blind, it says the same"


def test_a_prompt_may_come_in_pieces(model: tuple[TokenGraphs, Any, Any]) -> None:
    _, *sessions = model
    whole, parts = Loop(*sessions), Loop(*sessions)
    expected = whole([5, 6, 7, 8, 9])
    parts([5, 6])
    np.testing.assert_allclose(parts([7, 8, 9]), expected, atol=1e-5)


def test_padding_on_the_left_is_not_attended_to(model: tuple[TokenGraphs, Any, Any]) -> None:
    _, *sessions = model
    expected = Loop(*sessions)([5, 6, 7])
    mask = np.array([[0, 0, 1, 1, 1]])
    np.testing.assert_allclose(Loop(*sessions)([1, 1, 5, 6, 7], mask=mask, position=-2), expected, atol=1e-5)
    assert np.abs(Loop(*sessions)([1, 1, 5, 6, 7], position=-2) - expected).max() > 1e-3


def test_open_dimensions_are_those_that_are_named(tmp_path: Path) -> None:
    built = build("qwen2", "clip", vision_layers=2, text_layers=2)
    graphs = families.capture(built)
    piece = growing.growing_text(graphs)
    ir.save(onnx_of(piece, built), tmp_path / "text.onnx")
    assert check_graph(tmp_path / "text.onnx", piece.open_names).passed
    assert not check_graph(tmp_path / "text.onnx", [growing.ROWS, growing.CACHED]).passed
    assert not check_graph(tmp_path / "text.onnx").passed


def test_image_tokens_without_a_visual_token_are_zero() -> None:
    built = build("qwen2", "clip", vision_layers=2, text_layers=2)
    graphs = families.capture(built)
    image, hidden = graphs.geometry.image_token_id, graphs.geometry.text.hidden
    merge = session(onnx_of(growing.merged_embedding(graphs), built))
    features = np.arange(2, dtype=np.float32)[None, :, None] + np.ones((1, 2, hidden), np.float32)
    rows = merge.run(None, {"input_ids": np.array([[4, image, 4, image, image]]), "image_features": features})[0][0]
    np.testing.assert_array_equal(rows[[1, 3]], features[0])
    np.testing.assert_array_equal(rows[0], rows[2])
    assert not rows[4].any()


def test_a_model_may_say_what_stands_for_an_image() -> None:
    built = build("qwen2", "clip", vision_layers=2, text_layers=2)
    graphs = families.capture(built)
    image, vocab = graphs.geometry.image_token_id, graphs.geometry.text.vocab
    wide = columns(graphs, void=2)
    piece = marked_embedding(graphs, wide, image=(image, vocab), void=(8, 9))
    embeds = session(onnx_of(piece, built))
    features = np.full((2, wide.width), 7, np.float32)

    def rows(ids: list[int], seen: Any) -> Any:
        return embeds.run(None, {"input_ids": np.array([ids]), "image_features": seen})[0][0]

    table = graphs.parts.embed_tokens.weight.detach().numpy()  # type: ignore[operator]
    asked = rows([4, 8, image, vocab, 9, 5], features)
    assert asked[:, wide.hidden].tolist() == [-1, -1, 0, 7, 7, 0]
    np.testing.assert_array_equal(asked[[2, 5], : wide.hidden], table[[4, 5]])
    said = rows([4, 8, image, 9], features[:0])
    np.testing.assert_array_equal(said[:, : wide.hidden], table[[4, 8, image, 9]])
    assert not said[:, wide.hidden :].any()
