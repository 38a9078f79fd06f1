"""`tokcarve.load`: the carved model called and generating as the Hugging Face model it came from."""

from pathlib import Path

import pytest
import torch
from exported import KEEP, make_artifact
from models import IMAGE, TOTAL, pictures, prompt
from torch import Tensor

import tokcarve
from tokcarve.exporters.eager import CarvedModel, reduce_prompt
from tokcarve.passes.errors import ExportError

SITE = "vision.layers.2"


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artifact(tmp_path_factory.mktemp("eager"))


@pytest.fixture(scope="module")
def model(artifact: Path) -> CarvedModel:
    return tokcarve.load(artifact)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> CarvedModel:
    return tokcarve.load(make_artifact(tmp_path_factory.mktemp("whole"), method="none", tokens=TOTAL))


def asked(model: CarvedModel, lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Prompts with the image token of the written checkpoint, which is the tokenizer's own."""
    ids, real = prompt(lengths)
    image = model.graphs.geometry.image_token_id
    return torch.where(ids == IMAGE, image, torch.where(ids == image, 4, ids)), real


def test_rows_that_are_left_and_what_was_kept(model: CarvedModel) -> None:
    ids, _ = asked(model, [9, 9])
    out = model(pixel_values=pictures(2), input_ids=ids)
    assert out.logits.shape[:2] == (2, ids.shape[1] - TOTAL + KEEP)
    kept = out.kept[SITE]
    assert kept.dtype == torch.int64 and kept.shape == (2, KEEP)
    assert torch.equal(kept, kept.sort(dim=1).values) and int(kept.max()) < TOTAL
    assert out.image_features.shape[1] == KEEP


def test_without_reduction_it_is_the_hugging_face_model(whole: CarvedModel, model: CarvedModel) -> None:
    ids, _ = asked(whole, [9, 9])
    pixels = pictures(2)
    with torch.no_grad():
        expected = whole.base(pixel_values=pixels, input_ids=ids).logits
        found, pruned = whole(pixel_values=pixels, input_ids=ids), model(pixel_values=pixels, input_ids=ids)
    assert torch.allclose(found.logits, expected, atol=1e-5, rtol=0)
    assert found.kept == {}
    assert (pruned.logits[:, -1] - expected[:, -1]).abs().max() > 1e-2


@pytest.mark.parametrize("settings", [{"do_sample": False}, {"num_beams": 3}, {"do_sample": True, "top_k": 5}])
def test_generate_is_that_of_transformers(whole: CarvedModel, settings: dict[str, object]) -> None:
    ids, _ = asked(whole, [9, 9])
    pixels, most = pictures(2), {"max_new_tokens": 12, "min_new_tokens": 12, "pad_token_id": 0}
    torch.manual_seed(0)
    expected = whole.base.generate(pixel_values=pixels, input_ids=ids, **most, **settings)
    torch.manual_seed(0)
    found = whole.generate(pixel_values=pixels, input_ids=ids, **most, **settings)
    assert torch.equal(found, expected)


def test_padding_on_either_side_changes_nothing(model: CarvedModel) -> None:
    ids, lengths = asked(model, [12, 7])
    right = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    shift = [ids.shape[1] - int(n) for n in lengths]
    left_ids = torch.stack([row.roll(n) for row, n in zip(ids, shift, strict=True)])
    left = torch.stack([row.roll(n) for row, n in zip(right, shift, strict=True)])
    pixels = pictures(2)
    with torch.no_grad():
        a = model(pixel_values=pixels, input_ids=ids, attention_mask=right).logits[:, -1]
        b = model(pixel_values=pixels, input_ids=left_ids, attention_mask=left).logits[:, -1]
        alone = model(pixel_values=pixels[1:], input_ids=ids[1:, : int(lengths[1])]).logits[:, -1]
    assert torch.allclose(a, b, atol=1e-5, rtol=0)
    assert torch.allclose(a[1:], alone, atol=1e-5, rtol=0)


def test_generated_tokens_do_not_depend_on_the_batch(model: CarvedModel) -> None:
    ids, lengths = asked(model, [12, 7])
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    shift = ids.shape[1] - int(lengths[1])
    ids, mask = torch.stack([ids[0], ids[1].roll(shift)]), torch.stack([mask[0], mask[1].roll(shift)])
    pixels, most = pictures(2), {"max_new_tokens": 10, "min_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
    both = model.generate(pixel_values=pixels, input_ids=ids, attention_mask=mask, **most)
    one = model.generate(pixel_values=pixels[1:], input_ids=ids[1:, shift:], **most)
    assert torch.equal(both[1, -10:], one[0, -10:])


def test_refusals(model: CarvedModel) -> None:
    ids, _ = asked(model, [9])
    with pytest.raises(ExportError, match=f"prompt 0 holds {TOTAL - 1} image tokens, and .* exactly one image of"):
        model(pixel_values=pictures(1), input_ids=torch.cat([ids[:, :3], ids[:, 4:]], dim=1))
    with pytest.raises(ExportError, match="pixel_values is missing"):
        model(input_ids=ids)


def test_reduced_prompts_are_right_padded() -> None:
    ids = torch.tensor([[0, 0, 5, 9, 9, 9, 6]])
    found = reduce_prompt(ids, torch.tensor([[0, 0, 1, 1, 1, 1, 1]]), image_token_id=9, total=3, keep=1)
    assert found.input_ids.tolist() == [[5, 9, 6, 0, 0]] and found.lengths.tolist() == [3]
