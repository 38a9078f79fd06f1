"""Accuracy of the bundled checkpoint on its evaluation scenes: method x visual tokens, controls beside.

    python benchmarks/accuracy.py [--samples 1000] [--tokens 192 128 64 32] [--json accuracy.json]

Accuracy is exact match of the greedy answer over existence, colour, shape, place and digit; "same" is the share of all
answers that equal the unpruned model's. Random is the mean of three seeds.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from transformers import AutoProcessor

from tokcarve.exporters.eager import reduce_prompt
from tokcarve.passes import families
from tokcarve.passes.checkpoint import resolve
from tokcarve.passes.families.load import read_model
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.stage import Method
from tokcarve.recipes.calibration import calibrate, calibration_samples
from tokcarve.recipes.carve import method_of, rewritten
from tokcarve.recipes.schema import Calibration
from tokcarve.tiny import CORE, Sample, evaluation

BUDGETS = (192, 128, 64, 32)
METHODS: dict[str, list[tuple[str, dict[str, object]]]] = {
    "flowcut static": [("flowcut", {"form": "static"})],
    "flowcut exact": [("flowcut", {"form": "exact"})],
    "flowcut single": [("flowcut", {"form": "single"})],
    "vtc_cls": [("vtc_cls", {})],
    "uniform": [("uniform", {})],
    "random": [("random", {"seed": seed}) for seed in range(3)],
    "pooling": [("pooling", {})],
}
NEW_TOKENS = 6


@dataclass(frozen=True)
class Batch:
    """Scenes with their questions: pixels [scenes, 3, h, w], the scene of every question, ids and mask."""

    pixels: torch.Tensor
    scene: torch.Tensor
    ids: torch.Tensor
    mask: torch.Tensor


def batches(samples: list[Sample], processor: object, scenes: int = 8) -> Iterator[Batch]:
    """Questions of `scenes` scenes at a time, so that an image is encoded once."""
    groups: dict[int, list[Sample]] = defaultdict(list)
    for sample in samples:
        groups[id(sample.image)].append(sample)
    waiting = iter(groups.values())
    while chunk := list(islice(waiting, scenes)):
        pixels = processor.image_processor(images=[g[0].image for g in chunk], return_tensors="pt")["pixel_values"]
        texts = [processor.apply_chat_template(talk(s.question), add_generation_prompt=True) for g in chunk for s in g]
        images = [s.image for g in chunk for s in g]
        made = processor(images=images, text=texts, return_tensors="pt", padding=True, padding_side="left")
        scene = torch.tensor([i for i, g in enumerate(chunk) for _ in g])
        yield Batch(pixels, scene, made["input_ids"], made["attention_mask"])


def talk(question: str) -> list[dict[str, object]]:
    """One user turn with an image, as chat templates take it."""
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]


@torch.no_grad()
def answers(graphs: TokenGraphs, work: list[Batch], tokenizer: object) -> list[str]:
    """The greedy answer to every question, in order."""
    found: list[str] = []
    for batch in work:
        features, kept = graphs.vision(batch.pixels)
        prompt = reduce_prompt(
            batch.ids,
            batch.mask,
            image_token_id=graphs.geometry.image_token_id,
            total=graphs.geometry.total,
            keep=features.shape[1],
        )
        last = list(kept.values())[-1][batch.scene] if kept else None
        embeds, positions = graphs.embedding(prompt.input_ids, features[batch.scene], last)
        logits, keys, values = graphs.language(embeds, positions, prompt.lengths)
        row = torch.gather(logits, 1, (prompt.lengths - 1)[:, None, None].expand(-1, 1, logits.shape[2]))
        token, tokens = row.argmax(-1), []
        for step in range(NEW_TOKENS):
            tokens.append(token)
            at = prompt.lengths[:, None] + step
            logits, new_keys, new_values = graphs.decode(
                token, at, prompt.lengths, torch.tensor([step]), keys, values, step
            )
            keys = [torch.cat(pair, dim=2) for pair in zip(keys, new_keys, strict=True)]
            values = [torch.cat(pair, dim=2) for pair in zip(values, new_values, strict=True)]
            token = logits.argmax(-1)
        found.extend(spell(tokenizer, row, graphs.geometry.eos_token_ids) for row in torch.cat(tokens, 1).tolist())
    return found


def spell(tokenizer: object, tokens: list[int], stops: tuple[int, ...]) -> str:
    """The text before the first stop token."""
    end = next((i for i, token in enumerate(tokens) if token in stops), len(tokens))
    return str(tokenizer.decode(tokens[:end], skip_special_tokens=True)).strip().lower()


def score(samples: list[Sample], given: list[str]) -> dict[str, float]:
    """Exact match per family, and over the five core families together ("core")."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for sample, answer in zip(samples, given, strict=True):
        hits[sample.family].append(answer == sample.answer.lower())
    table = {family: sum(found) / len(found) for family, found in sorted(hits.items())}
    core = [hit for family in CORE for hit in hits[family]]
    return {"core": sum(core) / len(core), **table}


def main() -> None:
    """Print one row per method and budget."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--tokens", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    checkpoint = resolve("tiny")
    model = read_model(checkpoint.path)
    processor = AutoProcessor.from_pretrained(checkpoint.path, local_files_only=True)
    samples = list(evaluation(options.samples))
    work = list(batches(samples, processor))
    graphs = families.capture(model)
    full = answers(graphs, work, processor.tokenizer)
    rows = [{"method": "none", "tokens": graphs.geometry.total, "same": 1.0, **score(samples, full)}]
    show(rows[0], header=True)
    for tokens in options.tokens:
        for name, variants in METHODS.items():
            given = [
                answers(carved(graphs, model, method_of(*variant), tokens, checkpoint), work, processor.tokenizer)
                for variant in variants
            ]
            rows.append({"method": name, "tokens": tokens, **mean([line(samples, g, full) for g in given])})
            show(rows[-1])
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


def carved(graphs: TokenGraphs, model: object, method: Method, tokens: int, checkpoint: object) -> TokenGraphs:
    """`graphs` under `method`, its open counts calibrated on the calibration scenes."""
    dynamic, counts = method.dynamic(), None
    if dynamic is not None:
        samples = calibration_samples(Calibration(count=64))
        counts = calibrate(model, method, dynamic, tokens, samples, checkpoint).counts
    return rewritten(graphs, method, tokens, counts).graphs


def line(samples: list[Sample], given: list[str], full: list[str]) -> dict[str, float]:
    """Scores of one run, and how often it says what the unpruned model says."""
    return {"same": sum(a == b for a, b in zip(given, full, strict=True)) / len(full), **score(samples, given)}


def mean(runs: list[dict[str, float]]) -> dict[str, float]:
    """The mean of several runs, key by key."""
    return {key: sum(run[key] for run in runs) / len(runs) for key in runs[0]}


def show(row: dict[str, object], header: bool = False) -> None:
    """One Markdown row, flushed, so that a long run can be watched."""
    names = [key for key in row if key not in ("method", "tokens")]
    if header:
        print("| method | tokens | " + " | ".join(names) + " |")
        print("|---|--:|" + "--:|" * len(names))
    cells = " | ".join(f"{100 * float(row[key]):.1f}" for key in names)
    print(f"| {row['method']} | {row['tokens']} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
