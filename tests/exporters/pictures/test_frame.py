"""Patches lie where the image processor puts them, whatever the shape of the image."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from looks import look, picture
from PIL import Image

from tokcarve.exporters.pictures.frame import Frame
from tokcarve.passes.inputs.images import ImageProcessor

PLAIN = ImageProcessor(
    pad_square=False,
    shortest_edge=56,
    resize_to=None,
    resample=2,
    crop_to=(56, 56),
    rescale=None,
    mean=None,
    std=None,
)
PADDED = replace(PLAIN, pad_square=True, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
STRETCHED = replace(PLAIN, shortest_edge=None, resize_to=(56, 56), crop_to=None)
CROPPED = replace(PLAIN, shortest_edge=80, crop_to=(56, 56))
SMALL = replace(PLAIN, shortest_edge=40, crop_to=(56, 56))


@pytest.mark.parametrize("processor", [PLAIN, PADDED, STRETCHED, CROPPED, SMALL])
@settings(max_examples=12)
@given(width=st.integers(90, 300), height=st.integers(90, 300))
def test_the_part_that_is_seen_is_what_the_processor_leaves(processor: ImageProcessor, width: int, height: int) -> None:
    """Every colour tells its place, so the pixels that come out say where they came from; padding is black."""
    left, top, right, bottom = processor.seen(width, height)
    pixels = processor([picture(width, height)])[0]
    for axis, (low, high, size) in enumerate(((left, right, width), (top, bottom, height))):
        middles = low + (np.arange(56) + 0.5) * (high - low) / 56 - 0.5
        edge = 1 + 1.5 * (high - low) / 56  # mixed with padding
        inside = (middles > edge) & (middles < size - 1 - edge)
        found = pixels[axis].max(axis=axis)
        assert inside.sum() > 5
        assert np.abs(found - 255 * middles / (size - 1))[inside].max() < 2 + 255 / size


def test_sizes_by_hand() -> None:
    assert PLAIN.seen(120, 60) == (30.0, 0.0, 90.0, 60.0)
    assert PADDED.seen(100, 60) == (0.0, -20.0, 100.0, 80.0)
    assert STRETCHED.seen(100, 60) == (0.0, 0.0, 100.0, 60.0)


def test_labels_are_patches_row_by_row() -> None:
    labels = Frame(look(), 56).labels()
    assert labels.shape == (56, 56)
    assert [int(labels[7, x]) for x in (7, 21, 35, 49)] == [0, 1, 2, 3]
    assert int(labels[49, 7]) == 12 and (labels >= 0).all()
    assert {int(count) for count in np.bincount(labels.ravel())} == {196}


def test_what_is_cropped_away_belongs_to_no_patch() -> None:
    wide = Frame(look(size=(56, 28)), 112, whole=True)
    labels = wide.labels()
    assert wide.size == (112, 56) and labels.shape == (56, 112)
    assert (labels[:, :28] == -1).all() and (labels[:, 84:] == -1).all() and (labels[:, 28:84] >= 0).all()
    assert wide.shares() == (0.25, 0.0, 0.5, 1.0)
    assert Frame(look(size=(56, 28)), 112).size == (112, 112)


def test_the_picture_is_the_part_that_is_seen() -> None:
    image = Image.new("RGB", (56, 28), "white")
    image.paste("red", (14, 0, 42, 28))
    seen = Frame(look(size=(56, 28)), 112).canvas(image)
    assert (seen[14:-14, 14:-14] == (255, 0, 0)).all()
    whole = Frame(look(size=(56, 28)), 112, whole=True).canvas(image)
    assert (whole[:, :20] == 255).all() and whole.shape == (56, 112, 3)
