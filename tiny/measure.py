"""Exact match on scenes that training does not draw, fast enough to be looked at while it runs."""

from __future__ import annotations

from collections import Counter

import torch
from transformers import LlavaForConditionalGeneration

from tokcarve.tiny.batch import Packer, Stream
from tokcarve.tiny.forward import answer_logits, see
from tokcarve.tiny.questions import CORE, FAMILIES

HELD_OUT_SEED = 90_000_000
AT_ONCE = 16


@torch.no_grad()
def held_out(model: LlavaForConditionalGeneration, packer: Packer, size: int, images: int) -> dict[str, float]:
    """Share of questions per family whose every answer token is the likeliest one, which greedy decoding would give."""
    right: Counter[str] = Counter()
    asked: Counter[str] = Counter()
    stream = iter(Stream(packer, HELD_OUT_SEED, AT_ONCE, size, 12))
    for _ in range(images // AT_ONCE):
        batch = next(stream).to(model.device)
        logits, labels = answer_logits(model, packer.prefix, see(model, batch, last=False), batch)
        chosen = batch.label != -100
        row = torch.arange(len(batch.tokens), device=model.device)[:, None].expand_as(batch.segment)
        keys = torch.stack([row[chosen], batch.segment[chosen], batch.family[chosen]], dim=1).tolist()
        fits = (logits.argmax(1) == labels).tolist()
        wrong = {(key[0], key[1]) for key, fit in zip(keys, fits, strict=True) if not fit}
        for image, number, family in {(key[0], key[1], key[2]) for key in keys}:
            asked[FAMILIES[family]] += 1
            right[FAMILIES[family]] += (image, number) not in wrong
    result = {name: right[name] / max(1, asked[name]) for name in FAMILIES}
    result["core"] = sum(right[name] for name in CORE) / max(1, sum(asked[name] for name in CORE))
    return {name: round(value, 3) for name, value in result.items()}
