"""The language model of a Hugging Face LLaVA layer by layer on one prompt without padding: an oracle for tests.

Rows, positions and what is hidden may change between any two layers, so a reference for dropping, pooling or masking
visual tokens is a few lines.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

__all__ = ["embedded", "greedy", "ran", "said"]


@torch.no_grad()
def embedded(model: Any, ids: Tensor, features: Tensor, image_token: int) -> tuple[Tensor, slice]:
    """Rows [rows, hidden] of one prompt int64 [rows] with features [n, hidden] in place; where these are."""
    rows = model.get_input_embeddings()(ids)
    start = ids.tolist().index(image_token)
    image = slice(start, start + features.shape[0])
    rows[image] = features
    return rows, image


@torch.no_grad()
def ran(
    model: Any, layers: Iterable[int], rows: Tensor, positions: Tensor, hidden: slice | None = None
) -> tuple[Tensor, list[Tensor]]:
    """Rows [rows, hidden] behind the layers, and the keys after RoPE [kv_heads, rows, dim] of each; no row but the
    hidden ones attends to a hidden one."""
    text, kept = model.model.language_model, list[Tensor]()
    cos, sin = text.rotary_emb(rows, positions.unsqueeze(0))
    seen = torch.ones(len(rows), len(rows), dtype=torch.bool).tril()
    if hidden is not None:
        seen[hidden.stop :, hidden] = False
    for layer in layers:
        cache = DynamicCache()
        rows = text.layers[layer](
            rows.unsqueeze(0),
            attention_mask=seen[None, None],
            position_embeddings=(cos, sin),
            past_key_values=cache,
            use_cache=True,
        )[0]
        kept.append(cache.layers[layer].keys[0])
    return rows, kept


@torch.no_grad()
def said(model: Any, rows: Tensor) -> Tensor:
    """Logits [rows, vocab] of rows [rows, hidden] behind the last layer."""
    logits: Tensor = model.lm_head(model.model.language_model.norm(rows))
    return logits


@torch.no_grad()
def greedy(model: Any, logits: Callable[[Tensor], Tensor], rows: Tensor, steps: int) -> list[int]:
    """`steps` tokens, every one from `logits` [vocab] of the whole prompt [rows, hidden] and what was said before."""
    spoken = list[int]()
    for _ in range(steps):
        spoken.append(int(logits(rows).argmax()))
        rows = torch.cat([rows, model.get_input_embeddings()(torch.tensor(spoken[-1:]))])
    return spoken
