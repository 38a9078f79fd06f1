"""Overlaps, what became of patches, and the JSON of a look, by hand."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from looks import CHOOSING, MERGING, look

from tokcarve.exporters.pictures.kept import Column, Fate, Kept, jaccard, overlap

PATCHES = st.lists(st.integers(0, 15), max_size=8)


def test_jaccard_by_hand() -> None:
    assert jaccard((0, 1, 2), (2, 1, 7)) == 0.5
    assert jaccard((1,), (2,)) == 0.0 and jaccard((), (2,)) == 0.0 and jaccard((), ()) == 1.0


@given(PATCHES, PATCHES)
def test_jaccard_is_symmetric_and_1_for_equal_sets_alone(one: list[int], other: list[int]) -> None:
    found = jaccard(one, other)
    assert found == jaccard(other, one) and 0 <= found <= 1
    assert (found == 1) == (set(one) == set(other))


def test_overlap_compares_ends_with_ends_and_stages_with_ends() -> None:
    found = overlap([CHOOSING, MERGING])
    assert found["names"] == ["choosing", "merging"]
    assert found["last"] == [[1.0, pytest.approx(1 / 3)], [pytest.approx(1 / 3), 1.0]]
    assert [(stage["name"], stage["site"]) for stage in found["stages"]] == [
        ("choosing", "vision.layers.1"),
        ("choosing", "language.layers.2"),
        ("merging", "connector"),
    ]
    assert found["stages"][0]["with"] == [0.5, pytest.approx(1 / 5)]


def test_fates_name_the_stage_at_which_a_patch_left_and_the_token_it_went_into() -> None:
    chosen = CHOOSING.fates()
    assert chosen[1] == Fate(left="vision.layers.1")
    assert chosen[0] == Fate(left="language.layers.2")
    assert chosen[5] == Fate()
    merged = MERGING.fates()
    assert merged[3] == Fate(into=1) and merged[10] == Fate() and merged[15] == Fate(left="connector")


def test_a_patch_that_went_into_a_token_leaves_with_it() -> None:
    cut = Kept(site="language.layers.0", total=2, keep=1, how="choose", patches=(1,), groups=((0, 1, 2, 3),))
    fates = Column(**{**vars(MERGING), "stages": (*MERGING.stages, cut)}).fates()
    assert fates[9] == Fate(left="language.layers.0") and fates[3] == Fate(into=1)


def test_the_end_is_the_last_stage_that_keeps_some() -> None:
    gone = Kept(site="language.layers.3", total=2, keep=0, how="exit", patches=())
    assert Column(**{**vars(CHOOSING), "stages": (*CHOOSING.stages, gone)}).last.patches == (5, 10)
    unknown = Kept(site="language.layers.3", total=2, keep=1, how="choose", patches=None)
    assert Column(**{**vars(CHOOSING), "stages": (*CHOOSING.stages, unknown)}).last.patches == (5, 10)
    assert Column(**{**vars(CHOOSING), "stages": ()}).last.patches == tuple(range(16))


def test_a_look_is_json() -> None:
    record = json.loads(json.dumps(look().record(), allow_nan=False))
    assert list(record) == ["image", "size", "seen", "grid", "prompt", "columns", "overlap"]
    stage = record["columns"][0]["stages"][0]
    assert stage["kept"] == [0, 5, 10, 15] and stage["scores"]["5"] == 1.05 and stage["stands_for"] is None
    assert record["columns"][1]["stages"][0]["stands_for"] == [[0, 1, 2, 3], [8, 9, 10]]
