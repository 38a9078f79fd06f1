"""Opening an image file that anybody may have given: RGB pixels, or one sentence about what is wrong with it."""

import io
import os
import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from tokcarve.passes.errors import ImageError

__all__ = ["MOST_PIXELS", "open_bytes", "open_image"]

MOST_PIXELS = 64_000_000
"""Width times height above which an image is refused, before it is decoded."""

_BROKEN = (OSError, SyntaxError, ValueError, EOFError, OverflowError, MemoryError, struct.error)


def open_image(path: str | Path) -> Image.Image:
    """The first frame of an image file as RGB, upright as its EXIF orientation says; transparency is laid on white.

    Raises ImageError for a file that is missing, empty, no image, cut short, of zero size, or above 64 million pixels.
    """
    if not os.path.isfile(path):
        kind = "is a directory" if os.path.isdir(path) else "does not exist"
        raise ImageError(f"image {path} {kind}; give an image file such as a JPEG or a PNG")
    if os.path.getsize(path) == 0:
        raise ImageError(f"image {path} is empty (0 bytes); give an image file such as a JPEG or a PNG")
    return _opened(path, path)


def open_bytes(content: bytes, name: str) -> Image.Image:
    """As `open_image`, of the bytes of an image file that is called `name`."""
    return _opened(io.BytesIO(content), name)


def _opened(source: str | Path | io.BytesIO, path: str | Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            opened = Image.open(source)
    except Image.DecompressionBombError:
        raise _enormous(path, "more than 178 million pixels") from None
    except UnidentifiedImageError:
        raise ImageError(f"{path} is not an image that can be read; give a JPEG, PNG, WebP, BMP or TIFF file") from None
    except _BROKEN as error:
        raise ImageError(f"image {path} cannot be opened ({error}); give another file") from None
    with opened:
        return _decoded(path, opened)


def _decoded(path: str | Path, opened: Image.Image) -> Image.Image:
    width, height = opened.size
    if width == 0 or height == 0:
        raise ImageError(f"image {path} has zero size ({width} x {height} pixels); give another file")
    if width * height > MOST_PIXELS:
        raise _enormous(path, f"{width} x {height} pixels")
    try:
        opened.load()
        return _rgb(path, ImageOps.exif_transpose(opened))
    except _BROKEN as error:
        raise ImageError(f"image {path} is cut short or damaged ({error}); fetch the file again") from None


def _rgb(path: str | Path, image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ImageError(f"image {path} holds floating-point pixels, whose range is unknown; save it as 8-bit RGB")
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit pixels to 255, which turns most of them white
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image.convert("RGB")


def _enormous(path: str | Path, size: str) -> ImageError:
    return ImageError(f"image {path} is enormous ({size}); the limit is {MOST_PIXELS:,} pixels, so scale it down first")
