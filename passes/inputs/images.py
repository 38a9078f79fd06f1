"""Images to `pixel_values`, from a checkpoint's own processor files, with numpy and Pillow only.

Source      the arithmetic of transformers' Pillow image processors for CLIP, SigLIP and LLaVA: same filters, same order
            of operations, same roundings, so that the values are equal bit for bit.
Differs     transformers with torchvision installed resizes with other roundings (a few units of 1/255); that form is
            not offered, because a device has no torchvision. Every image becomes RGB, even where the file says that
            the processor should not convert.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokcarve.passes.errors import ArtifactError, ImageError, ModelError
from tokcarve.passes.inputs.files import read_object

__all__ = ["ImageProcessor", "load_image_processor"]

_CLIP_DEFAULTS: dict[str, Any] = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": (0.48145466, 0.4578275, 0.40821073),
    "image_std": (0.26862954, 0.26130258, 0.27577711),
    "do_pad": False,
}
_SIGLIP_DEFAULTS: dict[str, Any] = {
    **_CLIP_DEFAULTS,
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}
_MOST_PIXELS = 2**26
_DEFAULTS = {"CLIP": _CLIP_DEFAULTS, "Siglip": _SIGLIP_DEFAULTS, "Llava": _CLIP_DEFAULTS}

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class ImageProcessor:
    """What is done to an image, in this order; a step that is None or False is left out.

    Sizes are (height, width) in pixels; `shortest_edge` and `resize_to` exclude each other; `resample` is a Pillow
    filter number; `pad_square` fills with the mean colour; mean and std are per RGB channel, in units of the rescaled
    pixel.
    """

    pad_square: bool
    shortest_edge: int | None
    resize_to: tuple[int, int] | None
    resample: int
    crop_to: tuple[int, int] | None
    rescale: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def __call__(self, images: Sequence[Image.Image]) -> NDArray[np.float32]:
        """`pixel_values` float32 [batch, 3, height, width] of PIL images.

        Transparent pixels are laid on white. Raises ImageError for an image so narrow that resizing its shorter edge
        would fill the memory, ArtifactError if the images leave in different sizes, which only a processor that
        neither resizes to a fixed size nor crops can cause.
        """
        ready = [self._values(self._pixels(image)) for image in images]
        shapes = sorted({values.shape[1:] for values in ready})
        if len(shapes) > 1:
            raise ArtifactError(
                f"the image processor leaves images in different sizes {shapes}, so they cannot be one batch; "
                f"give images of one size or a processor that crops"
            )
        return np.stack(ready)

    def seen(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Which part of an image of that size the model sees: left, top, right and bottom in pixels of the image, below
        0 or beyond its size where it is padded.

        Raises ImageError as for the image itself.
        """
        left, top, across, down = 0.0, 0.0, float(width), float(height)
        if self.pad_square and self.mean is not None:
            across = down = float(max(width, height))
            left, top = -float((max(width, height) - width) // 2), -float((max(width, height) - height) // 2)
        resized = self._resized_size(int(down), int(across)) or (int(down), int(across))
        if self.crop_to is None:
            return left, top, left + across, top + down
        scale_x, scale_y = across / resized[1], down / resized[0]
        first_y, first_x = ((size - crop) // 2 for size, crop in zip(resized, self.crop_to, strict=True))
        left, top = left + first_x * scale_x, top + first_y * scale_y
        return left, top, left + self.crop_to[1] * scale_x, top + self.crop_to[0] * scale_y

    def _pixels(self, image: Image.Image) -> Pixels:
        pixels = _rgb(image)
        if self.pad_square and self.mean is not None:
            pixels = _padded_square(pixels, tuple(int(channel * 255) for channel in self.mean))
        size = self._resized_size(pixels.shape[0], pixels.shape[1])
        if size is not None:
            resized = Image.fromarray(pixels).resize((size[1], size[0]), resample=Image.Resampling(self.resample))
            pixels = np.asarray(resized)
        return pixels if self.crop_to is None else _centre_cropped(pixels, *self.crop_to)

    def _resized_size(self, height: int, width: int) -> tuple[int, int] | None:
        if self.shortest_edge is None:
            return self.resize_to
        short, long = sorted((height, width))
        longer = int(self.shortest_edge * long / short)
        if longer * self.shortest_edge > _MOST_PIXELS:
            raise ImageError(
                f"an image of {width} x {height} pixels would be resized to {self.shortest_edge} x {longer}; "
                f"crop it to a less extreme shape first"
            )
        return (longer, self.shortest_edge) if width <= height else (self.shortest_edge, longer)

    def _values(self, pixels: Pixels) -> NDArray[np.float32]:
        values: NDArray[np.float32] = pixels.astype(np.float32)
        if self.rescale is not None:
            values = (pixels.astype(np.float64) * np.float64(self.rescale)).astype(np.float32)
        if self.mean is not None and self.std is not None:
            mean, std = (np.array(channels, np.float32) for channels in (self.mean, self.std))
            values = np.divide(np.subtract(values, mean), std, dtype=np.float32)
        return np.ascontiguousarray(values.transpose(2, 0, 1))


def _rgb(image: Image.Image) -> Pixels:
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return np.asarray(image.convert("RGB"))


def _padded_square(pixels: Pixels, colour: tuple[int, ...]) -> Pixels:
    height, width = pixels.shape[:2]
    side = max(height, width)
    square = np.empty((side, side, 3), np.uint8)
    square[:] = np.array(colour, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square


def _centre_cropped(pixels: Pixels, height: int, width: int) -> Pixels:
    rows, columns = pixels.shape[:2]
    above, before = max(0, ceil((height - rows) / 2)), max(0, ceil((width - columns) / 2))
    canvas = np.zeros((max(height, rows), max(width, columns), 3), np.uint8)
    canvas[above : above + rows, before : before + columns] = pixels
    top, left = (rows - height) // 2 + above, (columns - width) // 2 + before
    return canvas[top : top + height, left : left + width]


def load_image_processor(directory: Path) -> ImageProcessor:
    """The image processor of the processor files in `directory` (of an artifact, or of a checkpoint).

    Reads `processor_config.json` if it holds an image processor, else `preprocessor_config.json`; missing keys take the
    defaults of the named type, and a null `do_...` is off. Raises ArtifactError for missing or broken files, ModelError
    for a type or a way of sizing that is not supported.
    """
    config, source = _read_config(directory)
    name = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
    family = next((kind for kind in _DEFAULTS if name.removesuffix("Fast").removesuffix("Pil") in _names(kind)), None)
    if family is None:
        known = ", ".join(f"{kind}ImageProcessor" for kind in _DEFAULTS)
        raise ModelError(f"{source} names the image processor {name!r}; supported are {known}")
    given = {key: value for key, value in config.items() if value is not None or key.startswith("do_")}
    settings = {**_DEFAULTS[family], **given}
    if settings["do_pad"] and settings.get("pad_size") is not None:
        raise ModelError(f"{source} pads to pad_size={settings['pad_size']}; only padding to a square is supported")
    shortest, fixed = _sizes(settings["size"], source) if settings["do_resize"] else (None, None)
    normal = settings["do_normalize"]
    return ImageProcessor(
        pad_square=family == "Llava" and bool(settings["do_pad"]),
        shortest_edge=shortest,
        resize_to=fixed,
        resample=int(settings["resample"]),
        crop_to=_height_and_width(settings["crop_size"], source) if settings["do_center_crop"] else None,
        rescale=float(settings["rescale_factor"]) if settings["do_rescale"] else None,
        mean=_channels(settings["image_mean"]) if normal else None,
        std=_channels(settings["image_std"]) if normal else None,
    )


def _names(kind: str) -> tuple[str, str]:
    return f"{kind}ImageProcessor", f"{kind}FeatureExtractor"


def _read_config(directory: Path) -> tuple[dict[str, Any], Path]:
    nested, plain = directory / "processor_config.json", directory / "preprocessor_config.json"
    for config, path in ((read_object(nested).get("image_processor"), nested), (read_object(plain), plain)):
        if isinstance(config, dict) and config:
            return config, path
    raise ArtifactError(
        f"{directory} has no image processor (preprocessor_config.json or processor_config.json); "
        f"copy the checkpoint's processor files there"
    )


def _sizes(size: object, source: Path) -> tuple[int | None, tuple[int, int] | None]:
    """(shortest edge, None) or (None, (height, width)); a bare number is a shortest edge, as in the oldest files."""
    if isinstance(size, int):
        return size, None
    if isinstance(size, dict) and set(size) == {"shortest_edge"}:
        return int(size["shortest_edge"]), None
    return None, _height_and_width(size, source)


def _height_and_width(size: object, source: Path) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    if isinstance(size, dict) and set(size) == {"height", "width"}:
        return int(size["height"]), int(size["width"])
    raise ModelError(f"{source} sizes images by {size!r}; supported are shortest_edge, or height and width")


def _channels(values: Any) -> tuple[float, ...]:
    return tuple(float(value) for value in (values if isinstance(values, list | tuple) else [values] * 3))
