"""What freezing FlowCut's counts costs in answers: its static form against the exact one, where it was not calibrated.

    python benchmarks/frozen.py [--scenes 250] [--tokens 192 128 64] [--threads 1]

The counts are calibrated on the bundled calibration scenes. They are measured on the evaluation scenes, and on the
same scenes shifted: the same questions about objects of three quarters of the size before backgrounds that are darker
or lighter, and coarser, than any the model was trained or calibrated on. Differences are static less exact, in points,
with a 95 % interval by a bootstrap over questions, both answers of a question drawn together.
"""

import argparse
from dataclasses import replace

import numpy as np
import torch
from answering import answers, batches, carved
from PIL import Image
from transformers import AutoProcessor

from tokcarve.passes import families
from tokcarve.passes.checkpoint import resolve
from tokcarve.passes.families.load import read_model
from tokcarve.passes.methods.flowcut import FlowCut
from tokcarve.recipes.calibration.intervals import paired
from tokcarve.tiny import Sample, Scene, evaluation
from tokcarve.tiny.draw import render

HEADER = (
    "| scenes | tokens | unpruned | exact | static | difference | loses at most 0.5 |\n|---|--:|--:|--:|--:|--:|---|"
)
ALLOWED = 0.005


def shifted(scene: Scene) -> tuple[Scene, Image.Image]:
    """The scene with smaller objects at the same places, before another background."""
    smaller = replace(scene, objects=tuple(replace(one, radius=one.radius * 3 // 4) for one in scene.objects))
    pixels, owner = render(smaller)
    rng = np.random.RandomState((scene.seed * 3 + 1) & 0xFFFFFFFF)
    base = rng.randint(62, 82) if rng.randint(2) else rng.randint(186, 204)
    cell = 28
    count = -(-scene.size // cell)
    coarse = base + rng.randint(-14, 15, (count, count, 1)) + rng.randint(-6, 7, (count, count, 3))
    field = np.repeat(np.repeat(coarse, cell, 0), cell, 1)[: scene.size, : scene.size]
    field = field + rng.randint(-5, 6, (scene.size, scene.size, 1))
    made = np.where((owner < 0)[:, :, None], np.clip(field, 0, 255).astype(np.uint8), pixels)
    return smaller, Image.fromarray(made)


def moved(samples: list[Sample]) -> list[Sample]:
    """The samples with their scenes shifted; those of one scene share the image."""
    images: dict[int, tuple[Scene, Image.Image]] = {}
    for sample in samples:
        if sample.scene.seed not in images:
            images[sample.scene.seed] = shifted(sample.scene)
    pairs = ((sample, *images[sample.scene.seed]) for sample in samples)
    return [replace(sample, scene=scene, image=image) for sample, scene, image in pairs]


def main() -> None:
    """Print the table; exit with 1 where the static form loses more than is allowed on the scenes as they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=250)
    parser.add_argument("--tokens", type=int, nargs="+", default=[192, 128, 64])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    checkpoint = resolve("tiny")
    model = read_model(checkpoint.path)
    plain = families.capture(model)
    processor = AutoProcessor.from_pretrained(checkpoint.path, local_files_only=True)
    forms = {form: FlowCut(form=form) for form in ("exact", "static")}
    counted = {
        n: {form: carved(plain, model, way, n, checkpoint) for form, way in forms.items()} for n in options.tokens
    }
    asked = list(evaluation(4 * options.scenes))
    worst = 0.0
    print(HEADER, flush=True)
    for name, samples in (("evaluation", asked), ("shifted", moved(asked))):
        work = list(batches(samples, processor))

        def right(graphs: object, work: object = work, samples: list[Sample] = samples) -> list[bool]:
            said = answers(graphs, work, processor.tokenizer)
            return [one == sample.answer for one, sample in zip(said, samples, strict=True)]

        whole = right(plain)
        for tokens, graphs in counted.items():
            exact, static = right(graphs["exact"]), right(graphs["static"])
            gap, low, high = paired(static, exact)
            if name == "evaluation":
                worst = min(worst, gap)
            shares = " | ".join(f"{100 * np.mean(hits):.1f}" for hits in (whole, exact, static))
            met = "yes" if gap >= -ALLOWED else "no"
            print(
                f"| {name} | {tokens} | {shares} | {100 * gap:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}) | {met} |",
                flush=True,
            )
    if worst < -ALLOWED:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
