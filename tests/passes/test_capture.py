"""A captured graph is the Hugging Face model: same logits, same answers, same weights in memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from greedy import answer, at_last_row
from models import SIDE, TOTAL, Text, Tower, build, config, pictures, prompt
from torch import Tensor
from transformers import LlavaForConditionalGeneration

from tokcarve.passes import families
from tokcarve.passes.blocks import Embedding
from tokcarve.passes.errors import ModelError
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.invariants import check_captured

GOLDENS = Path(__file__).parents[1] / "goldens"
PAIRS: list[tuple[Text, Tower]] = [
    ("llama", "clip"),
    ("mistral", "clip"),
    ("qwen2", "clip"),
    ("llama", "siglip"),
    ("mistral", "siglip"),
    ("qwen2", "siglip"),
]


@torch.no_grad()
def hugging_face(model: Any, pixels: Tensor, ids: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Logits of all prompt rows and greedy tokens of the model itself, prompts of one length, end of answer ignored."""
    logits = model(input_ids=ids, pixel_values=pixels).logits
    mask = torch.ones_like(ids)
    settings = {"max_new_tokens": steps, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    out = model.generate(input_ids=ids, pixel_values=pixels, attention_mask=mask, **settings)
    return logits, out[:, ids.shape[1] :]


@torch.no_grad()
def prefill(graphs: TokenGraphs, pixels: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
    features, _ = graphs.vision(pixels)
    logits: Tensor = graphs.language(*graphs.embedding(ids, features), lengths)[0]
    return logits


@pytest.mark.parametrize(("text", "tower"), PAIRS)
@pytest.mark.parametrize("batch", [1, 3])
def test_captured_graph_equals_hugging_face(text: Text, tower: Tower, batch: int) -> None:
    model = build(text, tower)
    graphs = families.capture(model)
    check_captured(graphs)
    pixels = pictures(batch)
    ids, lengths = prompt([12] * batch)
    expected, tokens = hugging_face(model, pixels, ids, 20)
    torch.testing.assert_close(prefill(graphs, pixels, ids, lengths), expected, atol=1e-5, rtol=0)
    with torch.no_grad():
        features, kept = graphs.vision(pixels)
    assert kept == {}
    _, growing = answer(graphs, features, ids, lengths, 20)
    _, fixed = answer(graphs, features, ids, lengths, 20, room=24)
    assert torch.equal(growing, tokens)
    assert torch.equal(fixed, tokens)
    assert len(set(tokens[0].tolist())) > 5, "an answer of one word proves little"


@pytest.mark.parametrize(("text", "tower"), PAIRS[:3])
def test_the_image_decides_the_answer(text: Text, tower: Tower) -> None:
    graphs = families.capture(build(text, tower))
    ids, lengths = prompt([12, 12])
    logits = prefill(graphs, pictures(2), ids[:1].expand(2, -1), lengths)[:, -1]
    assert (logits[0] - logits[1]).abs().max() > 0.1


@pytest.mark.parametrize("text", ["llama", "qwen2"])
@pytest.mark.parametrize("room", [None, 16])
def test_prompts_of_different_length_in_one_batch_equal_single_runs(text: Text, room: int | None) -> None:
    graphs = families.capture(build(text))
    ids, lengths = prompt([9, 23, 14])
    with torch.no_grad():
        features, _ = graphs.vision(pictures(3))
    logits, tokens = answer(graphs, features, ids, lengths, 12, room=room)
    for i, length in enumerate(lengths.tolist()):
        one = slice(i, i + 1)
        single, said = answer(graphs, features[one], ids[one, :length], lengths[one], 12)
        torch.testing.assert_close(logits[one], single, atol=1e-5, rtol=0)
        assert torch.equal(tokens[one], said)


@pytest.mark.parametrize(("tower", "layer"), [("siglip", -1), ("siglip", -2), ("clip", -1), ("clip", -2), ("clip", 3)])
def test_features_leave_at_the_layer_of_the_config(tower: Tower, layer: int) -> None:
    model = build("llama", tower, feature_layer=layer)
    graphs = families.capture(model)
    pixels = pictures(2)
    with torch.no_grad():
        expected = torch.stack(list(model.model.get_image_features(pixel_values=pixels).pooler_output))
        found, _ = graphs.vision(pixels)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert graphs.geometry.vision.layers_used == (layer if layer > 0 else 7 + layer)
    blocks = [n for n in graphs.vision.graph.nodes if str(n.target).startswith("layers.")]
    assert len(blocks) == graphs.geometry.vision.layers_used, "a layer behind the features is never run"


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_keys_and_values_are_kept_once_per_kv_head(kv_heads: int) -> None:
    graphs = families.capture(build("llama", kv_heads=kv_heads))
    ids, lengths = prompt([9, 9])
    with torch.no_grad():
        features, _ = graphs.vision(pictures(2))
        _, keys, values = graphs.language(*graphs.embedding(ids, features), lengths)
    assert graphs.geometry.text.kv_heads == kv_heads
    assert {tuple(t.shape) for t in (*keys, *values)} == {(2, kv_heads, 9 + TOTAL, 12)}


def test_capture_shares_the_weights_and_leaves_the_model_alone() -> None:
    model = build("qwen2")
    before = {name: (t.data_ptr(), t.clone()) for name, t in model.state_dict().items()}
    modules = {name: type(module) for name, module in model.named_modules()}
    attention = model.config._attn_implementation
    graphs = families.capture(model)
    prefill(graphs, pictures(1), *prompt([9]))
    assert {name: type(module) for name, module in model.named_modules()} == modules
    assert model.config._attn_implementation == attention
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == before[name][0]
        assert torch.equal(tensor, before[name][1])
    own = {t.data_ptr() for t in model.parameters()}
    pieces = (graphs.vision, graphs.language, graphs.decode, graphs.embedding)
    captured = {t.data_ptr() for piece in pieces for t in piece.parameters()}
    assert captured <= own
    # what lies behind the features is not part of any graph
    unused = {n for n, t in model.named_parameters() if t.data_ptr() not in captured}
    assert all("vision_tower.encoder.layers.5" in n or "post_layernorm" in n for n in unused), unused


def test_capture_of_a_model_without_weights_knows_its_shapes() -> None:
    graphs = families.capture(families.empty(config("qwen2")))
    check_captured(graphs)
    assert all(p.is_meta for p in graphs.vision.parameters())
    assert (graphs.geometry.total, graphs.geometry.vision.grid) == (TOTAL, (8, 8))


def test_captured_graph_equals_hugging_face_on_the_golden_model() -> None:
    model: Any = LlavaForConditionalGeneration.from_pretrained(GOLDENS / "model", attn_implementation="sdpa")
    graphs = families.capture(model)
    with np.load(GOLDENS / "inputs.npz") as inputs, np.load(GOLDENS / "reference.npz") as reference:
        pixels = torch.from_numpy(inputs["pixel_values"])[:2]
        ids = torch.from_numpy(inputs["input_ids"])[:2].long()
        said = torch.from_numpy(np.stack([reference[f"img{i}/gen"] for i in range(2)])).long()
        published = torch.from_numpy(np.stack([reference[f"img{i}/last_logits"] for i in range(2)]))
    lengths = torch.tensor([ids.shape[1]] * 2)
    with torch.no_grad():
        expected = model(input_ids=ids, pixel_values=pixels).logits
        features, _ = graphs.vision(pixels)
        logits = graphs.language(*graphs.embedding(ids, features), lengths)[0]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    # recorded with eager attention
    torch.testing.assert_close(at_last_row(logits, lengths), published, atol=1e-3, rtol=0)
    _, tokens = answer(graphs, features, ids, lengths, 8, banned=[2])
    assert torch.equal(tokens, said)


class TestEmbedding:
    """Rows and positions of a prompt of 2 text, 3 visual and 2 text tokens, of 10 patches."""

    ids = torch.tensor([[5, 6, 99, 99, 99, 7, 8]])
    features = torch.tensor([[[10.0], [20.0], [30.0]]])

    def embedding(self, total: int | None) -> Embedding:
        table = torch.nn.Embedding(9, 1, _weight=torch.arange(9.0).unsqueeze(1))
        return Embedding(table, image_token_id=99, total=total)

    def test_visual_tokens_take_the_places_of_the_image_tokens(self) -> None:
        rows, positions = self.embedding(None)(self.ids, self.features)
        assert rows.flatten().tolist() == [5, 6, 10, 20, 30, 7, 8]
        assert positions.tolist() == [[0, 1, 2, 3, 4, 5, 6]]

    def test_original_positions_are_those_of_the_unpruned_prompt(self) -> None:
        rows, positions = self.embedding(10)(self.ids, self.features, torch.tensor([[0, 4, 9]]))
        assert rows.flatten().tolist() == [5, 6, 10, 20, 30, 7, 8]
        assert positions.tolist() == [[0, 1, 2, 6, 11, 12, 13]]

    def test_every_prompt_of_a_batch_has_its_image_where_it_is(self) -> None:
        ids = torch.tensor([[5, 99, 99, 99, 7, 8, 1], [1, 2, 3, 99, 99, 99, 4]])
        kept = torch.tensor([[1, 2, 3], [7, 8, 9]])
        rows, positions = self.embedding(10)(ids, self.features.expand(2, -1, -1), kept)
        assert rows[..., 0].tolist() == [[5, 10, 20, 30, 7, 8, 1], [1, 2, 3, 10, 20, 30, 4]]
        assert positions.tolist() == [[0, 2, 3, 4, 11, 12, 13], [0, 1, 2, 10, 11, 12, 13]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture GPT2LMHeadModel .* supported: LlavaForConditional"),
        ({"architectures": None}, "architecture \\(none\\)"),
        ({"vision_feature_layer": [-2, -1]}, "joins several layers"),
        ({"vision_feature_layer": 9}, "vision_feature_layer=9 .* outside the tower's 6 layers"),
        ({"vision_feature_layer": -7}, "vision_feature_layer=-7 .* outside"),
        ({"vision_feature_select_strategy": "full"}, "'full' .* does not fit this tower"),
    ],
)
def test_a_model_without_an_adapter_is_refused(change: dict[str, object], message: str) -> None:
    made = config()
    for name, value in change.items():
        setattr(made, name, value)
    with pytest.raises(ModelError, match=message):
        families.geometry(made)


def test_an_unknown_tower_and_an_unknown_text_model_are_refused() -> None:
    made = config()
    made.vision_config.model_type = "dinov2"
    with pytest.raises(ModelError, match="vision tower 'dinov2' .* towers: clip_vision_model, siglip_vision_model"):
        families.geometry(made)
    made = config()
    made.text_config.model_type = "mamba"
    with pytest.raises(ModelError, match="language model 'mamba' .* supported: llama, mistral, qwen2"):
        families.geometry(made)


def test_geometry_states_the_shapes() -> None:
    geometry = families.geometry(config("mistral", "siglip"))
    assert (geometry.vision.kind, geometry.vision.prefix, geometry.vision.image_size) == ("siglip", 0, SIDE)
    assert (geometry.text.kind, geometry.text.heads, geometry.text.kv_heads, geometry.text.head_dim) == (
        "mistral",
        4,
        2,
        12,
    )
    assert (geometry.image_token_id, geometry.eos_token_ids, geometry.pad_token_id) == (447, (2,), 0)


def test_sliding_attention_is_refused_where_it_would_slide() -> None:
    model = build("mistral", sliding_window=TOTAL + 20)
    graphs = families.capture(model)
    ids, lengths = prompt([12])
    pixels = pictures(1)
    expected, tokens = hugging_face(model, pixels, ids, 8)
    torch.testing.assert_close(prefill(graphs, pixels, ids, lengths), expected, atol=1e-5, rtol=0)
    with torch.no_grad():
        features, _ = graphs.vision(pixels)
    assert torch.equal(answer(graphs, features, ids, lengths, 8)[1], tokens)
    with pytest.raises(ModelError, match="85 rows .* sliding window of 84 rows .*'sliding_window'"):
        answer(graphs, features, ids, lengths, 10)
    with pytest.raises(ModelError, match="sliding window"):
        prefill(graphs, pixels, *prompt([21]))


def test_a_model_that_adds_its_masks_is_refused() -> None:
    with pytest.raises(ModelError, match="attn_implementation='eager' .* load it with attn_implementation='sdpa'"):
        families.capture(build(attention="eager"))
