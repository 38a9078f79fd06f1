"""The page: nothing of it comes from elsewhere, what users named is text, and a browser agrees."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from browser import open_page
from looks import look, picture
from PIL import Image

from tokcarve.exporters.pictures.page import draw_page

ARROWS = """
const panel = document.querySelectorAll('.panel[data-column]')[0];
const press = (key) => panel.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true, cancelable: true}));
['ArrowRight', 'ArrowDown', 'ArrowLeft', 'ArrowLeft'].forEach(press);
document.body.dataset.first = document.querySelector('.tip').textContent;
press('ArrowRight');
document.body.dataset.second = document.querySelector('.tip').textContent;
document.body.dataset.spoken = document.querySelector('[aria-live]').textContent;
const marks = [...document.querySelectorAll('.at')];
document.body.dataset.marked = marks.filter((at) => at.style.display === 'block').length;
"""
HOVER = """
const box = document.querySelectorAll('.panel[data-column]')[2].getBoundingClientRect();
const at = {clientX: box.left + box.width * 0.63, clientY: box.top + box.height * 0.63, bubbles: true};
document.querySelectorAll('.panel[data-column]')[2].dispatchEvent(new PointerEvent('pointermove', at));
document.body.dataset.tip = document.querySelector('.tip').textContent;
"""


def told(dom: str, name: str) -> str:
    found = re.search(rf'<body[^>]*data-{name}="([^"]*)"', dom)
    assert found, f"the script did not run to its end: no data-{name}"
    return found[1]


def scored(patch: int, score: float) -> list[str]:
    below = sum(float(other % 5 == 0) + other / 100 < score for other in range(16))
    return [f"score {score} at vision.layers.1, above {round(100 * below / 15)} % of the scores"]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "look.html"
    path.write_text(draw_page(look(), picture()), encoding="utf-8")
    return path


def test_it_names_no_other_place(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.findall(r"(?:https?:)?//[a-z]", re.sub(r"data:[^\"')]*", "", text))
    assert "default-src 'none'" in text
    for source in re.findall(r'(?:src|href)="([^"]*)"', text) + re.findall(r"url\(\"([^\"]*)", text):
        assert source.startswith(("data:", "#"))


def test_what_users_named_is_text(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "a &amp; b.png" in text and "what &lt;is&gt; it?" in text and "a &lt;b&gt;cat" in text
    assert "<i>markup" not in text and "<b>cat" not in text


def test_the_data_of_the_script(page: Path) -> None:
    found = re.search(r'class="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.S)
    assert found
    data = json.loads(found[1])
    assert data["grid"] == {"rows": 4, "columns": 4}
    first, second = data["columns"]
    assert first["left"][1] == "vision.layers.1" and first["left"][5] is None and second["into"][3] == 1
    assert first["stages"][1]["scores"]["5"] == [3.0, 1.0] and second["stages"][0]["scores"] is None


def test_a_large_photograph_stays_small(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (900, 1200, 3), dtype=np.uint8)
    text = draw_page(look(size=(1200, 900)), Image.fromarray(noise))
    assert "data:image/jpeg" in text and len(text) < 2_500_000


def test_in_a_browser_it_is_whole_and_silent(page: Path, tmp_path: Path) -> None:
    shot = tmp_path / "page.png"
    opened = open_page(page, picture=shot)
    assert opened.console == ()
    assert opened.dom.count('class="panel"') == 5 and opened.dom.count("<figcaption>") == 6
    assert opened.dom.count("<tbody>") == 2 and opened.dom.count("<tr>") == 7
    with Image.open(shot) as made:
        assert len(made.convert("RGB").getcolors(2**20) or []) > 50, "there is something to see"


def test_arrow_keys_go_from_patch_to_patch(page: Path) -> None:
    dom = open_page(page, script=ARROWS).dom
    assert told(dom, "first").splitlines() == ["patch 4: row 1, column 0", "left at vision.layers.1", *scored(4, 0.04)]
    assert told(dom, "second").splitlines()[:2] == ["patch 5: row 1, column 1", "kept to the end"]
    assert told(dom, "spoken") == told(dom, "second") and told(dom, "marked") == "6"


def test_the_pointer_says_what_became_of_a_patch(page: Path) -> None:
    assert told(open_page(page, script=HOVER).dom, "tip").splitlines()[0] == "patch 10: row 2, column 2"


def test_a_page_that_loads_something_would_be_noticed(page: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    text = page.read_text(encoding="utf-8")
    bad.write_text(text.replace("</main>", '<img src="https://example.invalid/x.png"></main>'), encoding="utf-8")
    assert any("Content Security Policy" in line for line in open_page(bad).console)
