"""Image preparation on the device against the image processors of transformers (their Pillow form, as here)."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor

from tokcarve.passes.errors import ArtifactError, ImageError, ModelError
from tokcarve.passes.inputs.images import load_image_processor

LLAVA = {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 336},
    "crop_size": {"height": 336, "width": 336},
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "do_convert_rgb": True,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "llava 1.5": LLAVA,
    "odd crop": {**LLAVA, "size": {"shortest_edge": 30}, "crop_size": {"height": 41, "width": 37}},
    "oldest form": {"feature_extractor_type": "CLIPFeatureExtractor", "size": 64, "crop_size": 64},
    "fast": {"image_processor_type": "CLIPImageProcessorFast", "size": {"shortest_edge": 50}, "do_center_crop": None},
    "nulls": {**LLAVA, "image_mean": None, "do_normalize": None, "do_resize": None},
    "unscaled": {"image_processor_type": "CLIPImageProcessor", "do_rescale": False, "do_normalize": False},
    "siglip": {"image_processor_type": "SiglipImageProcessor", "size": {"height": 84, "width": 70}, "resample": 2},
    "llava padded": {"image_processor_type": "LlavaImageProcessor", "do_pad": True, "size": {"shortest_edge": 98}},
    "llava fast": {"image_processor_type": "LlavaImageProcessorFast", "do_pad": False},
}
SIZES = [(640, 480), (333, 517), (1, 9), (50, 50), (501, 37), (337, 335)]


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    channels = {"RGB": (3,), "RGBA": (4,), "L": ()}[mode]
    values = np.random.default_rng(width * height).integers(0, 256, (height, width, *channels), dtype=np.uint8)
    return Image.fromarray(values)


def write(directory: Path, config: dict[str, Any]) -> Path:
    (directory / "preprocessor_config.json").write_text(json.dumps(config))
    return directory


@pytest.mark.parametrize("name", CONFIGS)
def test_pixel_values_equal_transformers_bit_for_bit(tmp_path: Path, name: str) -> None:
    directory = write(tmp_path, CONFIGS[name])
    reference, ours = AutoImageProcessor.from_pretrained(directory), load_image_processor(directory)
    assert reference.backend == "pil"
    images = [picture(*size) for size in SIZES]
    if CONFIGS[name].get("do_convert_rgb", True):
        images += [picture(80, 70, "RGBA"), picture(80, 70, "L"), picture(80, 70).quantize(16)]
    for image in images:
        expected = reference(image, return_tensors="np")["pixel_values"]
        made = ours([image])
        assert made.dtype == np.float32 and made.shape == expected.shape
        np.testing.assert_array_equal(made, expected.astype(np.float32))


def test_a_batch_is_its_images(tmp_path: Path) -> None:
    ours = load_image_processor(write(tmp_path, LLAVA))
    images = [picture(*size) for size in SIZES]
    np.testing.assert_array_equal(ours(images), np.concatenate([ours([image]) for image in images]))


def test_a_nested_config_comes_first(tmp_path: Path) -> None:
    write(tmp_path, LLAVA)
    nested = {"image_processor": {**LLAVA, "crop_size": {"height": 14, "width": 14}}}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert load_image_processor(tmp_path).crop_to == (14, 14)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_processor_type": "PixtralImageProcessor"}, "names the image processor 'PixtralImageProcessor'"),
        ({"image_processor_type": None}, "supported are CLIPImageProcessor, SiglipImageProcessor, LlavaImageProcessor"),
        ({"size": {"longest_edge": 300}}, "sizes images by {'longest_edge': 300}"),
        ({"do_pad": True, "pad_size": {"height": 400, "width": 400}}, "only padding to a square"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load_image_processor(write(tmp_path, {**LLAVA, **change}))


def test_missing_and_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="has no image processor"):
        load_image_processor(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ArtifactError, match="preprocessor_config.json cannot be read"):
        load_image_processor(tmp_path)


def test_images_of_different_sizes_are_no_batch_without_a_crop(tmp_path: Path) -> None:
    ours = load_image_processor(write(tmp_path, {**LLAVA, "do_center_crop": False}))
    with pytest.raises(ArtifactError, match="different sizes"):
        ours([picture(40, 30), picture(30, 50)])


def test_an_extreme_shape_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    ours = load_image_processor(write(tmp_path, LLAVA))
    with pytest.raises(ImageError, match="1 x 9000 pixels would be resized to 336 x 3024000"):
        ours([picture(1, 9000)])
