import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokcarve.passes.errors import ImageError
from tokcarve.passes.inputs.pictures import MOST_PIXELS, open_image


def _refusal(path: Path) -> str:
    with pytest.raises(ImageError) as refusal:
        open_image(path)
    assert "\n" not in str(refusal.value)
    assert str(path) in str(refusal.value)
    return str(refusal.value)


def _png(width: int, height: int) -> bytes:
    """The first chunks of a PNG that promises this size."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">II", zlib.crc32(chunk), 64) + b"IDAT"


def _noise(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, len(mode)), dtype=np.uint8)
    return Image.fromarray(pixels if len(mode) > 1 else pixels[..., 0], mode=None)


def test_no_file(tmp_path: Path) -> None:
    assert _refusal(tmp_path / "no.png").endswith("does not exist; give an image file such as a JPEG or a PNG")
    assert "is a directory" in _refusal(tmp_path)


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"")
    assert "is empty (0 bytes)" in _refusal(tmp_path / "a.png")


@pytest.mark.parametrize(
    "content", [b"hello", b"{}" * 500, bytes(100), b"\x89PNG\r\n\x1a\n", b"GIF89a", b"\xff\xd8\xff"]
)
def test_no_image(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    _refusal(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"])
def test_a_truncated_image(tmp_path: Path, kind: str) -> None:
    stream = io.BytesIO()
    _noise().save(stream, kind)
    path = tmp_path / "a.bin"
    path.write_bytes(stream.getvalue()[: len(stream.getvalue()) * 2 // 3])
    _refusal(path)


def test_zero_size(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(_png(0, 5))
    _refusal(tmp_path / "a.png")


@pytest.mark.parametrize("side", [8001, 10_000, 60_000])
def test_an_enormous_image_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    (tmp_path / "a.png").write_bytes(_png(side, side) + b"\0" * 64)
    text = _refusal(tmp_path / "a.png")
    assert f"is enormous ({side} x {side} pixels" in text or "is enormous (more than 178 million pixels" in text
    assert text.endswith(f"the limit is {MOST_PIXELS:,} pixels, so scale it down first")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    _noise().convert(mode).save(tmp_path / "a.tiff")
    image = open_image(tmp_path / "a.tiff")
    assert (image.mode, image.size) == ("RGB", (60, 40))


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)
    Image.new("LA", (2, 2), (0, 255)).save(tmp_path / "b.png")
    assert open_image(tmp_path / "b.png").getpixel((0, 0)) == (0, 0, 0)
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "c.png", transparency=1)
    assert open_image(tmp_path / "c.png").getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 256, 32768, 65535]], dtype=np.uint16)).save(tmp_path / "a.png")
    assert [open_image(tmp_path / "a.png").getpixel((x, 0))[0] for x in range(4)] == [0, 1, 128, 255]  # type: ignore[index]


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), dtype=np.float32)).save(tmp_path / "a.tiff")
    assert "holds floating-point pixels" in _refusal(tmp_path / "a.tiff")


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image, exif = _noise(), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    opened = open_image(tmp_path / "a.png")
    assert opened.size == (40, 60)
    assert np.array_equal(np.asarray(opened), np.rot90(np.asarray(image), -1))
