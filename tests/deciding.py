"""A small checkpoint, its samples, and a worker that looks at them: what tests of decisions stand on."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from layerwise import embedded
from models import build, pictures, write
from PIL import Image
from torch import Tensor

from tokcarve.passes import families
from tokcarve.passes.checkpoint import resolve
from tokcarve.passes.families.load import read_config
from tokcarve.passes.stage import Look, Method
from tokcarve.recipes.calibration.bench import Bench, bench_of
from tokcarve.recipes.calibration.decide import looks_of
from tokcarve.recipes.calibration.pool import Local
from tokcarve.recipes.calibration.work import Worker
from tokcarve.recipes.schema import Calibration

LAYERS = 5
COUNT = 8
WORDS = ("what is it?", "how many are there, and where?", "is it red?", "say what you see in the middle")


def write_base(place: Path) -> Path:
    """A checkpoint, and beside it a sample set."""
    asked(place, ["nothing"] * COUNT)
    return write(build("llama", "clip", text_layers=LAYERS), place / "model")


def asked(place: Path, answers: Sequence[str | None]) -> Path:
    """A sample set: an image and a question for every answer."""
    lines = []
    for number, (pixels, answer) in enumerate(zip(pictures(len(answers)), answers, strict=True)):
        levels = (pixels.movedim(0, 2) * 60 + 120).clamp(0, 255).to(torch.uint8).numpy()
        Image.fromarray(levels).save(place / f"{number}.png")
        lines.append({"image": f"{number}.png", "prompt": WORDS[number % len(WORDS)], "answer": answer})
    path = place / "samples.jsonl"
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def hired(stand: Bench) -> Worker:
    pool = stand.runner.pool
    assert isinstance(pool, Local)
    return Worker(pool.job)


def bench(base: Path, samples: Path | None = None) -> Bench:
    checkpoint = resolve(str(base))
    geometry = families.geometry(read_config(checkpoint.path))
    source = str(samples or base.parent / "samples.jsonl")
    return bench_of(checkpoint, geometry, Calibration(samples=source, count=COUNT))


def looked(base: Path, method: Method, tokens: int, samples: Sequence[int]) -> list[Look]:
    stand = bench(base)
    decision = method.decides(stand.geometry, tokens)
    assert decision is not None
    return looks_of(stand, decision, method, tokens, "renumbered", samples)


def prompt(worker: Worker, sample: int, features: Tensor) -> tuple[Tensor, slice]:
    question, image = worker.question(sample), worker.graphs.geometry.image_token_id
    ids = torch.tensor(question.ids(image, 1 if not len(features) else features.shape[0]))
    return embedded(worker.model, ids, features, image)


def maps(eager: Any, rows: Tensor) -> list[Tensor]:
    """What every layer attends to, [heads, rows, rows]."""
    with torch.no_grad():
        made = eager.model.language_model(inputs_embeds=rows.unsqueeze(0), output_attentions=True)
    return [one[0] for one in made.attentions]
