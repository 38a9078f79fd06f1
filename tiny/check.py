"""Measure a checkpoint with plain transformers: accuracy, a blank image, random pruning, and where [CLS] looks.

`python -m tokcarve.tiny.check [--checkpoint DIR] [--samples N] [--parts ...] [--json FILE]`
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from tokcarve.tiny import CORE, FAMILIES, FRAME, Sample, checkpoint_dir, evaluation, patch_owner

PARTS: tuple[str, ...] = ("unpruned", "random", "blank", "cls")


class Checkpoint:
    """A loaded model with its processor; `answer` is greedy generation behind any share of the visual tokens."""

    def __init__(self, directory: Path) -> None:
        self.processor: Any = AutoProcessor.from_pretrained(directory)  # type: ignore[no-untyped-call]
        self.model: Any = LlavaForConditionalGeneration.from_pretrained(directory, attn_implementation="sdpa")
        self.model.train(False)
        self.image_token = self.model.config.image_token_index

    def prompt(self, question: str) -> str:
        """The chat template's text of one image and one question."""
        content = [{"type": "image"}, {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        return str(self.processor.apply_chat_template(messages, add_generation_prompt=True))

    def inputs(self, image: Image.Image, questions: Sequence[str]) -> dict[str, torch.Tensor]:
        """Model inputs of several questions about one image, padded on the left."""
        texts = [self.prompt(question) for question in questions]
        return dict(self.processor(images=[image] * len(texts), text=texts, return_tensors="pt", padding=True))

    def decode(self, tokens: torch.Tensor) -> list[str]:
        """The texts of generated tokens, stripped."""
        return [text.strip() for text in self.processor.batch_decode(tokens, skip_special_tokens=True)]

    @torch.no_grad()
    def answer(self, image: Image.Image, questions: Sequence[str], keep: torch.Tensor | None = None) -> list[str]:
        """Answers to several questions about one image; `keep` are the places of the visual tokens that stay."""
        inputs = self.inputs(image, questions)
        if keep is None:
            tokens = self.model.generate(**inputs)
            return self.decode(tokens[:, inputs["input_ids"].shape[1] :])
        embeds = self.model.get_input_embeddings()(inputs["input_ids"])
        found = self.model.get_image_features(inputs["pixel_values"][:1]).pooler_output
        features = found[0].to(embeds.dtype)
        rows, masks = [], []
        for ids, row, mask in zip(inputs["input_ids"], embeds, inputs["attention_mask"], strict=True):
            at = int((ids == self.image_token).nonzero()[0, 0])
            end = at + len(features)
            rows.append(torch.cat([row[:at], features[keep], row[end:]]))
            masks.append(torch.cat([mask[:at], mask[at:end][keep], mask[end:]]))
        tokens = self.model.generate(inputs_embeds=torch.stack(rows), attention_mask=torch.stack(masks))
        return self.decode(tokens)


def grouped(samples: Sequence[Sample]) -> list[list[Sample]]:
    """Samples of one scene together."""
    groups: dict[int, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.scene.seed, []).append(sample)
    return list(groups.values())


def accuracy(
    checkpoint: Checkpoint, samples: Sequence[Sample], keep: int | None = None, blank: bool = False, seed: int = 0
) -> dict[str, float]:
    """Exact match per family and over the families of the target, behind `keep` random visual tokens or all."""
    generator = torch.Generator().manual_seed(seed)
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    grey = Image.new("RGB", (FRAME, FRAME), (128, 128, 128))
    for group in grouped(samples):
        places = None
        if keep is not None:
            places = torch.randperm(checkpoint.model.config.image_seq_length, generator=generator)[:keep].sort().values
        image = grey if blank else group[0].image
        answers = checkpoint.answer(image, [sample.question for sample in group], places)
        for sample, answer in zip(group, answers, strict=True):
            asked[sample.family] += 1
            right[sample.family] += answer == sample.answer
    result = {name: right[name] / max(1, asked[name]) for name in FAMILIES}
    result["core"] = sum(right[name] for name in CORE) / max(1, sum(asked[name] for name in CORE))
    result["all"] = sum(right.values()) / max(1, sum(asked.values()))
    return {name: round(value, 4) for name, value in result.items()}


def guess(samples: Sequence[Sample]) -> dict[str, float]:
    """Accuracy of always giving the commonest answer of the family."""
    answers: dict[str, Counter[str]] = {name: Counter() for name in FAMILIES}
    for sample in samples:
        answers[sample.family][sample.answer] += 1
    best = {name: max(found.values(), default=0) for name, found in answers.items()}
    total = {name: max(1, found.total()) for name, found in answers.items()}
    result = {name: best[name] / total[name] for name in FAMILIES}
    result["core"] = sum(best[name] for name in CORE) / sum(total[name] for name in CORE)
    result["all"] = sum(best.values()) / sum(total.values())
    return {name: round(value, 4) for name, value in result.items()}


@torch.no_grad()
def cls_attention(checkpoint: Checkpoint, samples: Sequence[Sample]) -> dict[str, Any]:
    """Per vision layer the mean share of [CLS] attention to patches that falls on objects, and their share of area."""
    checkpoint.model.set_attn_implementation("eager")
    shares: list[list[float]] = []
    area: list[float] = []
    for group in grouped(samples):
        inputs = checkpoint.inputs(group[0].image, [group[0].question])
        tower = checkpoint.model.model.vision_tower
        attentions = tower(inputs["pixel_values"], output_attentions=True).attentions
        on = torch.from_numpy(patch_owner(group[0].scene).reshape(-1) >= 0)
        rows = [layer[0, :, 0, 1:].mean(0) for layer in attentions]
        shares.append([float(row[on].sum() / row.sum()) for row in rows])
        area.append(float(on.float().mean()))
    checkpoint.model.set_attn_implementation("sdpa")
    means = [round(sum(column) / len(column), 4) for column in zip(*shares, strict=True)]
    return {"share_on_objects_per_layer": means, "share_of_area": round(sum(area) / len(area), 4)}


def main() -> None:
    """Print and store the chosen figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=checkpoint_dir())
    parser.add_argument("--samples", type=int, default=None)
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    parser.add_argument("--keep", type=int, nargs="*", default=[192, 128, 64])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    samples = list(evaluation(args.samples))
    checkpoint = Checkpoint(args.checkpoint)
    tasks: dict[str, Callable[[], dict[str, Any]]] = {"commonest answer": lambda: guess(samples)}
    if "unpruned" in args.parts:
        tasks["unpruned"] = lambda: accuracy(checkpoint, samples)
    if "random" in args.parts:
        tasks |= {f"random {keep}": partial(accuracy, checkpoint, samples, keep) for keep in args.keep}
    if "blank" in args.parts:
        tasks["blank"] = lambda: accuracy(checkpoint, samples, blank=True)
    if "cls" in args.parts:
        tasks["cls"] = lambda: cls_attention(checkpoint, samples)
    figures: dict[str, Any] = {"samples": len(samples)}
    for name, task in tasks.items():
        begin = time.monotonic()
        figures[name] = task()
        print(name, figures[name], f"{time.monotonic() - begin:.0f}s", flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
