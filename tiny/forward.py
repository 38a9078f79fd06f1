"""Forward passes and losses of training, through the modules of the Hugging Face model itself.

A packed row holds one image and many questions; its mask lets every question see the image and itself only, and its
positions restart behind the image, so each question is computed exactly as it would be alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface, LlavaForConditionalGeneration
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tokcarve.tiny.batch import DENSE, PRESENT, Batch
from tokcarve.tiny.draw import FRAME, PATCH

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
PATCHES = (FRAME // PATCH) ** 2
NONE = (0.12, 0.12, 0.08, 1.0)
"""Weight of the last class of every patch label: most patches show nothing."""
SHARE = (0.3, 0.15, 0.5, 0.25)
"""Weight of every patch label in the loss; digits are learnt last."""


def _full_precision(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention in fp32 inside mixed precision: on processors its bf16 kernel takes twice the time."""
    with torch.autocast(query.device.type, enabled=False):
        found = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **options)
    return found[0].to(query.dtype), None


ATTENTION = "sdpa_fp32"
AttentionInterface.register(ATTENTION, _full_precision)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


class Heads(nn.Module):
    """The read-outs that exist in training only: labels of patches and labels of the image from [CLS]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(DENSE)))
        self.present = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, PRESENT))
        self.last = nn.Linear(width, PRESENT)


@dataclass
class Seen:
    """`patches` and `cls` are taken where LLaVA takes its features; `last` is the pooled output or None."""

    patches: torch.Tensor
    cls: torch.Tensor
    last: torch.Tensor | None


def start_positions(model: LlavaForConditionalGeneration) -> None:
    """Give the vision tower sinusoidal 2-D position embeddings, from which it learns where things are sooner."""
    table = model.model.vision_tower.embeddings.position_embedding.weight
    quarter = table.shape[1] // 4
    side = FRAME // PATCH
    rate = torch.exp(-torch.arange(quarter) / quarter * torch.log(torch.tensor(60.0)))
    angle = torch.arange(side)[:, None] * rate[None, :]
    wave = torch.cat([angle.sin(), angle.cos()], dim=1)
    both = torch.cat([wave[:, None, :].expand(-1, side, -1), wave[None, :, :].expand(side, -1, -1)], dim=2)
    with torch.no_grad():
        table[1:] = 0.35 * both.reshape(PATCHES, -1)


def see(model: LlavaForConditionalGeneration, batch: Batch, last: bool) -> Seen:
    """Run the vision tower on the picked patches at their places in the full frame."""
    tower = model.model.vision_tower
    pixels = batch.pixels
    mean = torch.tensor(MEAN, device=pixels.device)[None, :, None, None]
    std = torch.tensor(STD, device=pixels.device)[None, :, None, None]
    embed = tower.embeddings
    patches = embed.patch_embedding((pixels.float() / 255 - mean) / std).flatten(2).transpose(1, 2)
    table = embed.position_embedding.weight
    index = batch.picked[:, :, None].expand(-1, -1, patches.shape[2])
    patches = patches.gather(1, index) + table[1:][batch.grid]
    first = (embed.class_embedding + table[0]).expand(len(pixels), 1, -1)
    hidden = tower.pre_layrnorm(torch.cat([first.to(patches.dtype), patches], dim=1))
    for layer in tower.encoder.layers[:-1]:
        hidden = layer(hidden, attention_mask=None)
    top = None
    if last:
        top = tower.post_layernorm(tower.encoder.layers[-1](hidden, attention_mask=None)[:, 0])
    return Seen(hidden[:, 1:], hidden[:, 0], top)


def vision_loss(heads: Heads, seen: Seen, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy of the patch labels, and of the image labels read from [CLS]."""
    logits = heads.dense(seen.patches).float().flatten(0, 1).split(DENSE, dim=1)
    labels = batch.dense.flatten(0, 1)
    dense = torch.zeros((), device=labels.device)
    for index, part in enumerate(logits):
        weight = torch.ones(DENSE[index], device=labels.device)
        weight[-1] = NONE[index]
        dense = dense + SHARE[index] * F.cross_entropy(part, labels[:, index], weight=weight)
    boost = torch.full((PRESENT,), 3.0, device=labels.device)
    present = F.binary_cross_entropy_with_logits(heads.present(seen.cls).float(), batch.present, pos_weight=boost)
    if seen.last is not None:
        present = present + F.binary_cross_entropy_with_logits(
            heads.last(seen.last).float(), batch.present, pos_weight=boost
        )
    return dense, present


def keep_tokens(count: int, share: float, generator: torch.Generator) -> torch.Tensor:
    """Sorted places of a random share of `count` tokens."""
    kept = max(8, round(count * share))
    return torch.randperm(count, generator=generator)[:kept].sort().values


def answer_logits(
    model: LlavaForConditionalGeneration,
    prefix: list[int],
    seen: Seen,
    batch: Batch,
    kept: torch.Tensor | None = None,
    spaced: bool = True,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of every labelled place with its label; `spaced` counts positions as if the full frame were shown."""
    language = model.model.language_model
    device = batch.tokens.device
    patches, grid = seen.patches, batch.grid
    if kept is not None:
        patches, grid = patches[:, kept], grid[:, kept]
    image = model.model.multi_modal_projector(patches)
    rows, count, lead = len(batch.tokens), image.shape[1], len(prefix)
    table = language.embed_tokens
    head = table(torch.tensor(prefix, device=device)).expand(rows, -1, -1)
    embeds = torch.cat([head.to(image.dtype), image, table(batch.tokens).to(image.dtype)], dim=1)
    order = grid if spaced else torch.arange(count, device=device).expand(rows, -1)
    after = lead + (PATCHES if spaced else count)
    place = torch.cat([torch.arange(lead, device=device).expand(rows, -1), lead + order, after + batch.offset], dim=1)
    segment = F.pad(batch.segment, (lead + count, 0), value=-2)
    length = segment.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    shared = segment[:, None, :] == -2
    mask = causal & (shared | (segment[:, :, None] == segment[:, None, :]))
    hidden = language(
        inputs_embeds=embeds, attention_mask=mask[:, None], position_ids=place, use_cache=False
    ).last_hidden_state[:, lead + count :]
    chosen = batch.label != -100
    return model.lm_head(hidden[chosen]).float(), batch.label[chosen]
