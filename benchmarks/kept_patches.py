"""A picture of what is kept: the image, then the patches that each artifact lets into the language model.

    python benchmarks/kept_patches.py ARTIFACT ... --image docs/scene.png --prompt "what colour is it?" --out kept.png

Every artifact is asked by `tokcarve run --json`; what it answered stands below its picture.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from tokcarve.passes.inputs.samples import open_image
from tokcarve.recipes.artifact import read_artifact

SIDE, GAP, LINE = 336, 12, 34


def ask(artifact: Path, image: Path, prompt: str, runtime: str) -> dict[str, Any]:
    """What `tokcarve run` says about one image."""
    command = [sys.executable, "-m", "tokcarve.cli", "run", str(artifact), "--image", str(image), "--prompt", prompt]
    done = subprocess.run([*command, "--runtime", runtime, "--json"], capture_output=True, text=True, check=True)
    reply: dict[str, Any] = json.loads(done.stdout)
    return reply


def masked(image: Image.Image, kept: list[int], grid: tuple[int, int]) -> Image.Image:
    """The image with every patch that was not kept faded towards white; the image must be square."""
    rows, columns = grid
    mask = np.zeros(rows * columns, dtype=bool)
    mask[[patch for patch in kept if patch >= 0]] = True  # -1 is the [CLS] row
    mask = mask.reshape(rows, columns).repeat(SIDE // rows, axis=0).repeat(SIDE // columns, axis=1)
    pixels = np.asarray(image.resize((SIDE, SIDE))).astype(float)[: mask.shape[0], : mask.shape[1]]
    faded = np.where(mask[..., None], pixels, 235 + 0.08 * pixels)
    return Image.fromarray(faded.clip(0, 255).astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="+", type=Path)
    parser.add_argument("--image", type=Path, required=True)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--runtime", choices=("ort", "torch"), default="torch")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    image = open_image(given.image)
    panels = [(image.resize((SIDE, SIDE)), given.prompt)]
    for artifact in given.artifacts:
        manifest = read_artifact(artifact).manifest
        reply = ask(artifact, given.image, given.prompt, given.runtime)
        name = f"{manifest.method.name}, {manifest.budget.tokens} of {manifest.budget.total}"
        panels.append(
            (masked(image, reply["kept_indices"], manifest.geometry.vision.grid), f"{name}: {reply['answer']}")
        )
    sheet = Image.new("RGB", (len(panels) * (SIDE + GAP) - GAP, SIDE + LINE), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (picture, words) in enumerate(panels):
        sheet.paste(picture, (place * (SIDE + GAP), 0))
        pen.text((place * (SIDE + GAP), SIDE + 8), words, fill="black", font_size=18)
    sheet.save(given.out, optimize=True)


if __name__ == "__main__":
    main()
