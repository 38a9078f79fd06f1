"""A picture of a page as a browser shows it, for the documentation.

tokcarve sweep tiny --methods tome,cdpruner,vtc_cls,pyramiddrop --tokens 64,32 --limit 48 -o sweep-tiny
python benchmarks/screenshot.py sweep-tiny/report.html --size 1240 1240 --out docs/sweep.png
"""

import argparse
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("--size", type=int, nargs=2, default=(1200, 900), metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    browser = next((found for name in NAMES if (found := shutil.which(name))), None)
    if browser is None:
        parser.error(f"no browser here; one of {', '.join(NAMES)} is needed")
    with TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={folder}/browser",
        ]
        flags += [f"--blink-settings=preferredColorScheme={0 if given.dark else 1}", f"--screenshot={shot}"]
        size = ",".join(map(str, given.size))
        command = [browser, *flags, f"--window-size={size}", given.page.absolute().as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        with Image.open(shot) as made:
            made.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(given.out, optimize=True)


if __name__ == "__main__":
    main()
