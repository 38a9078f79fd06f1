"""Image preparation in a graph: the pixels of the checkpoint's own processor, bit for bit; ONNX rounds their values."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from PIL import Image

from tokcarve.exporters.onnx import lower
from tokcarve.exporters.prepare import Prepare, unpreparable
from tokcarve.passes.errors import ModelError
from tokcarve.passes.inputs.images import ImageProcessor

CLIP = ImageProcessor(
    pad_square=False,
    shortest_edge=56,
    resize_to=None,
    resample=3,
    crop_to=(56, 56),
    rescale=1 / 255,
    mean=(0.48, 0.46, 0.41),
    std=(0.27, 0.26, 0.28),
)
SIGLIP = replace(CLIP, shortest_edge=None, resize_to=(56, 56), crop_to=None, resample=2)
# width, height; Pillow 13 resizes some taller ones down first
SIZES = ((56, 56), (90, 56), (131, 101), (33, 21), (4, 3), (300, 57))


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width + height).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


def raw(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image, np.float32).transpose(2, 0, 1)[None].copy())


@pytest.mark.parametrize("processor", [CLIP, SIGLIP, replace(CLIP, crop_to=(40, 30)), replace(CLIP, rescale=None)])
@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_the_processor(processor: ImageProcessor, size: tuple[int, int]) -> None:
    image = noise(*size)
    np.testing.assert_array_equal(Prepare(processor)(raw(image)).numpy(), processor([image]))


def test_one_graph_takes_images_of_every_size() -> None:
    example = torch.zeros(1, 3, 37, 45)
    opens = {"raw": {2: "height", 3: "width"}}
    graph = lower(Prepare(CLIP), (example,), input_names=("raw",), output_names=("ready",), opens=opens)
    session = onnxruntime.InferenceSession(ir.to_proto(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    for size in SIZES:
        image = noise(*size)
        # one pixel more or less would be 0.014
        np.testing.assert_allclose(session.run(None, {"raw": raw(image).numpy()})[0], CLIP([image]), atol=2e-6)


def test_another_filter_makes_other_pixels() -> None:
    image = noise(90, 70)
    assert not np.array_equal(Prepare(replace(CLIP, resample=2))(raw(image)).numpy(), CLIP([image]))


@pytest.mark.parametrize(
    ("processor", "words"),
    [
        (replace(CLIP, pad_square=True), "pads images"),
        (replace(CLIP, resample=1), "filter 1"),
        (replace(CLIP, shortest_edge=None), "different sizes"),
        (replace(CLIP, crop_to=(60, 56)), "more than images are resized to"),
    ],
)
def test_what_no_graph_prepares_is_refused(processor: ImageProcessor, words: str) -> None:
    assert words in str(unpreparable(processor))
    with pytest.raises(ModelError, match=words):
        Prepare(processor)
