"""A small transformer over visual tokens that hears a question, as plain matrix products of tensors given by name.

Every block: linear attention of the tokens to one another, attention to the question, a gated MLP; each reads normed
rows and adds to them. Everything is float32 and linear in the number of tokens.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import elu, silu

__all__ = ["block_shapes", "scored"]

_LOWEST = torch.finfo(torch.float32).min


def block_shapes(blocks: int, width: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Of the tensors that `scored` takes, by name; an MLP is twice as wide."""
    shapes: dict[str, tuple[int, ...]] = {"v_in.weight": (width, hidden), "t_in.weight": (width, hidden)}
    shapes |= {"type_embed": (2, width), "norm.weight": (width,), "head.weight": (1, width)}
    for at in (f"blocks.{block}" for block in range(blocks)):
        shapes |= {f"{at}.{part}.{one}.weight": (width, width) for part in ("attn", "xattn") for one in "qkvo"}
        shapes |= {f"{at}.norm{i}.weight": (width,) for i in (1, 2, 3)}
        shapes |= {f"{at}.mlp.{one}.weight": (2 * width, width) for one in ("gate", "up")}
        shapes |= {f"{at}.mlp.down.weight": (width, 2 * width)}
    return shapes


def scored(tensors: Mapping[str, Tensor], tokens: Tensor, text: Tensor, places: Tensor, heads: int) -> Tensor:
    """Logits [batch, n] of tokens [batch, n, hidden], with text [batch, rows, hidden] where places [batch, rows] hold
    1."""
    kinds = tensors["type_embed"]
    rows = _times(tensors, "v_in", tokens) + kinds[0]
    text = _times(tensors, "t_in", text) + kinds[1]
    for block in range(sum(name.endswith(".norm1.weight") for name in tensors)):
        at = f"blocks.{block}"
        rows = rows + _among(tensors, f"{at}.attn", _normed(tensors, f"{at}.norm1", rows), heads)
        rows = rows + _asked(tensors, f"{at}.xattn", _normed(tensors, f"{at}.norm2", rows), text, places, heads)
        fed = _normed(tensors, f"{at}.norm3", rows)
        gate, up = (_times(tensors, f"{at}.mlp.{one}", fed) for one in ("gate", "up"))
        rows = rows + _times(tensors, f"{at}.mlp.down", silu(gate) * up)
    return _times(tensors, "head", _normed(tensors, "norm", rows)).squeeze(2)


def _times(tensors: Mapping[str, Tensor], name: str, rows: Tensor) -> Tensor:
    return rows @ tensors[f"{name}.weight"].T


def _normed(tensors: Mapping[str, Tensor], name: str, rows: Tensor) -> Tensor:
    return rows * torch.rsqrt(rows.square().mean(dim=-1, keepdim=True) + 1e-6) * tensors[f"{name}.weight"]


def _split(rows: Tensor, heads: int) -> Tensor:
    return rows.view(rows.shape[0], rows.shape[1], heads, -1).transpose(1, 2)


def _among(tensors: Mapping[str, Tensor], at: str, rows: Tensor, heads: int) -> Tensor:
    query, key, value = (_split(_times(tensors, f"{at}.{one}", rows), heads) for one in "qkv")
    query, key = elu(query) + 1, elu(key) + 1
    mixed = query @ (key.transpose(2, 3) @ value) / (query @ key.sum(dim=2).unsqueeze(3)).clamp_min(1e-6)
    return _times(tensors, f"{at}.o", mixed.transpose(1, 2).reshape(rows.shape))


def _asked(tensors: Mapping[str, Tensor], at: str, rows: Tensor, text: Tensor, places: Tensor, heads: int) -> Tensor:
    """Nothing where nothing is asked."""
    query = _split(_times(tensors, f"{at}.q", rows), heads)
    key, value = (_split(_times(tensors, f"{at}.{one}", text), heads) for one in "kv")
    there = places[:, None, None, :]
    logits = torch.where(there > 0, query @ key.transpose(2, 3) / query.shape[3] ** 0.5, _LOWEST)
    found = (torch.softmax(logits, dim=-1) * there) @ value
    return _times(tensors, f"{at}.o", found.transpose(1, 2).reshape(rows.shape))
