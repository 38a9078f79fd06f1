"""Answers of the bundled checkpoint on its evaluation scenes, under any method: what the benchmarks share."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch

from tokcarve.exporters.eager import reduce_prompt
from tokcarve.passes.graph import TokenGraphs, thread
from tokcarve.passes.stage import Method
from tokcarve.recipes.calibration import calibrate, calibration_samples
from tokcarve.recipes.carve import rewritten
from tokcarve.recipes.schema import Calibration
from tokcarve.tiny import Sample

__all__ = ["Batch", "answers", "batches", "carved", "talk"]

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
        prompt = reduce_prompt(
            batch.ids,
            batch.mask,
            image_token_id=graphs.geometry.image_token_id,
            total=graphs.geometry.total,
            keep=thread(graphs.vision).count,
        )
        # an image is encoded once, unless what is kept depends on the question
        per = batch.scene if not graphs.reads_text else torch.arange(len(batch.scene))
        pixels = batch.pixels[batch.scene] if graphs.reads_text else batch.pixels
        features, kept, _ = graphs.see(pixels, prompt.input_ids, prompt.lengths)
        last = list(kept.values())[-1][per] if kept else None
        embeds, positions = graphs.embedding(prompt.input_ids, features[per], last)
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


def carved(graphs: TokenGraphs, model: object, method: Method, tokens: int, checkpoint: object) -> TokenGraphs:
    """`graphs` under `method`, its open counts calibrated on the calibration scenes."""
    frozen = None
    if method.dynamic() is not None or method.fit(graphs.geometry, tokens) is not None:
        samples = calibration_samples(Calibration(count=64))
        frozen = calibrate(model, method, tokens, samples, checkpoint).frozen
    return rewritten(graphs, method, tokens, frozen).graphs
