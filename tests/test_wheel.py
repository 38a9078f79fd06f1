"""The wheel holds exactly the sources: a mapping that forgets a folder builds an empty wheel without complaint."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("cli", "exporters", "passes", "recipes", "tiny")


def test_the_wheel_holds_the_sources(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    expected = {"tokcarve/__init__.py", "tokcarve/py.typed"}
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts and file.name != ".DS_Store":
                expected.add(f"tokcarve/{file.relative_to(ROOT).as_posix()}")
    assert names == expected
