"""What the README shows must exist and be what it says."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from tokcarve.cli.main import app
from tokcarve.tiny import evaluation

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("https://") or (ROOT / target).is_file(), f"README.md links to {target}"


def test_commands_exist() -> None:
    verbs = {command.name for command in app.registered_commands}
    used = re.findall(r"(?m)(?:^    |`)tokcarve ([a-z]+)", README)
    assert len(used) > 3 and set(used) <= verbs
    targets = set(re.findall(r"(?m)^([a-z]+):", (ROOT / "Makefile").read_text()))
    assert set(re.findall(r"make ([a-z]+)", README)) <= targets
    for script in re.findall(r"benchmarks/\w+\.py", README):
        assert (ROOT / script).is_file(), script


def test_the_scene_of_the_demo_is_one_of_the_evaluation() -> None:
    *_, last = evaluation(13)
    with Image.open(ROOT / "docs" / "scene.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(last.image))
