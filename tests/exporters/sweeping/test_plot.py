"""The plot: round ticks, everything inside, names apart, and files that are what they are called."""

import io
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tokcarve.exporters.sweeping.plot import as_png, as_svg, lay_out, ticks
from tokcarve.exporters.sweeping.table import Row


def row(method: str, tokens: int, cost: float, score: float, *, control: bool = False, front: bool = False) -> Row:
    return Row(
        method=method,
        tokens=tokens,
        is_control=control,
        entering=tokens,
        mean=float(tokens),
        kv_mib=0.1,
        encoder=cost,
        prefill=cost,
        cost=cost,
        score=score,
        macro=score,
        loyalty=score,
        kl=0.1,
        families={},
        against_unpruned=None,
        control=None,
        against_control=None,
        front=front,
        measured=None,
    )


PLAIN = row("none", 16, 1.0, 0.98, front=True)
ROWS = [
    PLAIN,
    row("a<b", 4, 0.3, 0.9, front=True),
    row("a<b", 8, 0.5, 0.95, front=True),
    row("c", 4, 0.3, 0.9),
    row("uniform", 4, 0.3, 0.8, control=True),
]


def test_ticks_by_hand() -> None:
    assert ticks(0, 100) == [0, 20, 40, 60, 80, 100]
    assert ticks(93.2, 98.5) == [92, 94, 96, 98, 100]
    assert ticks(5, 5)[0] <= 5 <= ticks(5, 5)[-1]


@given(st.floats(0, 99), st.floats(0.01, 100))
def test_ticks_hold_what_they_are_for(low: float, span: float) -> None:
    found = ticks(low, low + span)
    assert found[0] <= low + 1e-6 and found[-1] >= low + span - 1e-6 and 2 <= len(found) <= 8


def test_points_lie_where_their_numbers_say() -> None:
    layout = lay_out(ROWS)
    first, second = layout.lines[0].marks
    assert layout.plain is not None and layout.plain.x > second.x > first.x and layout.plain.y < second.y < first.y
    at = dict((text, x) for x, text in layout.xs)
    assert layout.plain.x == pytest.approx(at["100"], abs=0.1)
    assert layout.lines[1].marks[0].x == first.x and layout.lines[1].marks[0].y == first.y
    assert [line.dashed for line in layout.lines] == [False, False, True]
    assert len(layout.front) == 3


def test_names_do_not_lie_upon_one_another() -> None:
    many = [PLAIN, *(row(f"m{i}", 4, 0.3, 0.9 + i / 1e5) for i in range(20))]
    labels = sorted(line.label for line in lay_out(many).lines)
    assert all(b - a > 15 for a, b in zip(labels, labels[1:], strict=False))
    assert labels[-1] <= lay_out(many).height


def test_the_svg_is_xml_and_says_every_point() -> None:
    text = as_svg(lay_out(ROWS))
    root = ElementTree.fromstring(text)
    titles = [one.text for one in root.iter("{http://www.w3.org/2000/svg}title")]
    assert len(titles) == 5 and "a<b, 4 tokens: 90.0% right, 30.0% of the FLOPs, 90.0% as unpruned" in titles
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")


def test_the_png_is_a_picture() -> None:
    with Image.open(io.BytesIO(as_png(lay_out(ROWS)))) as made:
        assert made.format == "PNG" and made.size == (1440, 880)
        assert len(made.convert("RGB").getcolors(2**20) or []) > 20
