"""Pages in a real browser without a screen; tests are skipped, saying so, where there is none."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

__all__ = ["Opened", "open_page"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--hide-scrollbars")


@dataclass(frozen=True)
class Opened:
    """The page as it is after its scripts ran, and what it said on the console."""

    dom: str
    console: tuple[str, ...]


def open_page(page: Path, *, script: str = "", dark: bool = False, picture: Path | None = None) -> Opened:
    """`page` opened, `script` run at its end; `picture` is a screenshot to write."""
    browser = next((found for name in NAMES if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"no browser here; one of {', '.join(NAMES)} is needed")
    if script:
        text = page.read_text(encoding="utf-8").replace("</body>", f"<script>{script}</script></body>")
        page = page.with_name(f"scripted-{page.name}")
        page.write_text(text, encoding="utf-8")
    profile = f"--user-data-dir={page.parent / 'browser'}"
    colours = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [browser, *FLAGS, profile, colours, "--enable-logging=stderr", "--window-size=1280,1200"]
    if picture is not None:
        subprocess.run(
            [*command, f"--screenshot={picture}", page.as_uri()], capture_output=True, check=True, timeout=120
        )
    done = subprocess.run(
        [*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, check=True, timeout=120
    )
    return Opened(done.stdout, tuple(re.findall(r'CONSOLE[^"]*"(.*)", source', done.stderr)))
