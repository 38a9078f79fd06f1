"""Colours and outlines by hand, and the PNG: kept patches as they are, dropped ones faded, merged ones alike."""

import io

import numpy as np
from looks import CHOOSING, MERGING, look, picture
from PIL import Image

from tokcarve.exporters.pictures.frame import Frame
from tokcarve.exporters.pictures.shades import SHADES, heat, outlines, owners, ranks
from tokcarve.exporters.pictures.sheet import draw_sheet, heat_panel, kept_panel


def test_ranks_share_equal_scores() -> None:
    assert ranks({3: 0.1, 4: 9.0, 7: 0.1, 9: 1.0}) == {3: 0.0, 7: 0.0, 9: 0.5, 4: 1.0}
    assert ranks({5: 2.0}) == {5: 0.0} and ranks({}) == {}


def test_shades_run_from_the_lowest_to_the_highest() -> None:
    found = heat({0: -1.0, 1: 0.0, 2: 5.0, -1: 7.0}, 4)
    assert tuple(found[0, :3]) == SHADES[0] and found[3].tolist() == [0, 0, 0, 0]
    assert tuple(heat({0: 1.0, 1: 2.0}, 2)[1, :3]) == SHADES[-1]


def test_outlines_lie_between_tokens() -> None:
    owner = np.array([0, 0, 2, -1])
    assert outlines(owner, (1, 4)) == [(2, 0, 2, 1), (3, 0, 3, 1)]
    assert outlines(owner, (2, 2)) == [(1, 1, 1, 2), (0, 1, 1, 1), (1, 1, 2, 1)]
    assert outlines(np.zeros(4, int), (2, 2)) == []


def test_owners_are_the_patches_of_tokens() -> None:
    assert owners(MERGING.stages[0], 16).tolist() == [1, 1, 1, 1, -1, -1, -1, -1, 10, 10, 10, -1, -1, -1, -1, -1]


def test_kept_patches_keep_their_colours_and_dropped_ones_fade() -> None:
    frame = Frame(look(), 56)
    canvas = frame.canvas(picture())
    made, labels = kept_panel(CHOOSING.stages[0], canvas, frame, 16), frame.labels()
    kept = np.isin(labels, (0, 5, 10, 15))
    assert (made[kept] == canvas[kept]).all()
    assert (made[~kept] >= 255 - 0.09 * 255 - 1).all()


def test_merged_patches_look_alike() -> None:
    frame = Frame(look(), 56)
    canvas = frame.canvas(picture())
    made, labels = kept_panel(MERGING.stages[0], canvas, frame, 16), frame.labels()
    inner = labels[7, 20:36]  # across patches 1 and 2, away from outlines and dots
    assert set(inner.tolist()) == {1, 2}
    before, after = (np.ptp(one[3, 20:36, 0].astype(float)) for one in (canvas, made))
    assert after < 0.5 * before
    assert (made[labels == 15] >= 230).all()


def test_scores_are_shaded_where_there_are_some() -> None:
    frame = Frame(look(), 56)
    made, labels = heat_panel(CHOOSING.stages[1], frame.canvas(picture()), frame, 16), frame.labels()
    best, worst = (made[labels == patch].mean(axis=0) for patch in (5, 0))
    assert best[0] > 180 and best[1] > 170 and worst.sum() < best.sum()
    assert (made[labels == 1] >= 230).all()


def test_a_sheet_is_a_png_and_the_same_every_time() -> None:
    first = draw_sheet(look(), picture())
    assert first == draw_sheet(look(), picture())
    with Image.open(io.BytesIO(first)) as made:
        assert made.format == "PNG" and made.width > 1100 and made.height > 900
    with Image.open(io.BytesIO(draw_sheet(look(), picture(), last_only=True))) as small:
        assert small.height < 400 and small.width < made.width


def test_a_method_that_drops_nothing_has_a_panel() -> None:
    plain = CHOOSING.__class__(**{**vars(CHOOSING), "stages": ()})
    assert draw_sheet(look(plain), picture())
