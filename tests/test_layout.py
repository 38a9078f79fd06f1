"""Links for development, mapping for wheels and folders on disk must name the same packages."""

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"cli", "exporters", "passes", "recipes", "tiny"}


def test_links_mapping_and_folders_agree() -> None:
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["sources"] == {"src/tokcarve": "tokcarve", **{name: f"tokcarve/{name}" for name in PACKAGES}}
    own = {"src/tokcarve/__init__.py", "src/tokcarve/py.typed"}
    assert set(wheel["only-include"]) == PACKAGES | own
    for name in PACKAGES:
        link = ROOT / "src" / "tokcarve" / name
        assert link.is_symlink() and link.resolve() == ROOT / name, (
            f"{link} is no link to {ROOT / name}; on Windows run `git config core.symlinks true` and check out again"
        )
    here = {path.name for path in (ROOT / "src" / "tokcarve").iterdir()} - {"__pycache__"}
    assert here == PACKAGES | {"__init__.py", "py.typed"}


def test_every_folder_of_code_is_a_package() -> None:
    for name in PACKAGES:
        for file in (ROOT / name).rglob("*.py"):
            assert (file.parent / "__init__.py").is_file(), f"{file.parent} needs an __init__.py with a docstring"


def test_nothing_of_ours_is_imported_under_a_bare_name() -> None:
    for name in PACKAGES:
        bare = sys.modules.get(name)
        assert getattr(bare, "__file__", None) is None, f"import tokcarve.{name}: a second copy breaks isinstance"


def test_no_merge_was_left_half_done() -> None:
    for folder in (*PACKAGES, "docs", "tests", "benchmarks"):
        for file in (ROOT / folder).rglob("*"):
            if file.suffix in {".py", ".md", ".yaml", ".json", ".html"}:
                left = [line for line in file.read_text().splitlines() if line.startswith(("<" * 7, ">" * 7, "|" * 7))]
                assert not left, f"{file}: {left}"
