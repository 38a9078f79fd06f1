"""The leaves of the language graphs: decoder layers with plain tensors for a cache, and the masks they attend under."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tokcarve.passes.errors import ModelError

__all__ = ["Rotary", "TextBlock", "causal_mask", "decode_mask", "rotated"]


class _OneLayerCache:
    """The cache protocol of a decoder layer for exactly one layer: remembers the new rows, returns past + new."""

    def __init__(self, past_key: Tensor | None, past_value: Tensor | None) -> None:
        self.past = (past_key, past_value)
        self.new: tuple[Tensor, Tensor] | None = None

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        self.new = (key, value)
        if self.past[0] is None or self.past[1] is None:
            return key, value
        return torch.cat([self.past[0], key], dim=2), torch.cat([self.past[1], value], dim=2)


class TextBlock(nn.Module):
    """One decoder layer with its cache as plain tensors: returns hidden states and the new key and value rows.

    Shapes: hidden [batch, rows, hidden]; mask bool [batch or 1, 1, rows, past + rows]; cos, sin [batch, rows, dim];
    past_key, past_value and the returned rows [batch, kv_heads, rows, dim], keys after RoPE.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = int(layer.self_attn.head_dim)
        self.scale = float(layer.self_attn.scaling)

    def normed(self, hidden: Tensor) -> Tensor:
        """The rows as this layer's attention sees them, same shape."""
        rows: Tensor = self.layer.get_submodule("input_layernorm")(hidden)
        return rows

    def project(self, which: str, rows: Tensor) -> Tensor:
        """`rows` [batch, n, hidden] through the q, k or v projection, before RoPE -> [batch, heads, n, head_dim]."""
        out: Tensor = self.layer.get_submodule(f"self_attn.{which}_proj")(rows)
        return out.view(*out.shape[:-1], -1, self.head_dim).transpose(1, 2)

    def attend(self, hidden: Tensor, mask: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The first half of the layer without a cache: `hidden` plus attention, and the key and value rows."""
        cache = _OneLayerCache(None, None)
        added, _ = self.layer.get_submodule("self_attn")(
            hidden_states=self.normed(hidden),
            attention_mask=mask,
            position_embeddings=(cos, sin),
            past_key_values=cache,
        )
        assert cache.new is not None
        return hidden + added, *cache.new

    def fed(self, hidden: Tensor) -> Tensor:
        """The rows as this layer's MLP sees them, same shape."""
        rows: Tensor = self.layer.get_submodule("post_attention_layernorm")(hidden)
        return rows

    @property
    def mlp(self) -> Any:
        """gate_proj, up_proj, act_fn and down_proj."""
        return self.layer.get_submodule("mlp")

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor,
        cos: Tensor,
        sin: Tensor,
        past_key: Tensor | None = None,
        past_value: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        cache = _OneLayerCache(past_key, past_value)
        out = self.layer(
            hidden, attention_mask=mask, position_embeddings=(cos, sin), past_key_values=cache, use_cache=True
        )
        assert cache.new is not None
        return out, *cache.new


def rotated(rows: Float[Tensor, "batch heads rows dim"], cos: Tensor, sin: Tensor) -> Tensor:
    """`rows` turned by RoPE; cos, sin [batch, rows, dim]. The steps are the layers' own, so a graph shares them."""
    low, high = rows[..., : rows.shape[-1] // 2], rows[..., rows.shape[-1] // 2 :]
    return (rows * cos.unsqueeze(1)) + (torch.cat((-high, low), dim=-1) * sin.unsqueeze(1))


class Rotary(nn.Module):
    """cos and sin [batch, rows, head_dim] of the rows' positions, in the dtype of `hidden`."""

    def __init__(self, rotary: nn.Module) -> None:
        super().__init__()
        self.rotary = rotary

    def forward(self, hidden: Tensor, position_ids: Int[Tensor, "batch rows"]) -> tuple[Tensor, Tensor]:
        cos, sin = self.rotary(hidden, position_ids)
        return cos, sin


def _fits(rows: int | torch.SymInt, window: int | None) -> None:
    # within its window, sliding attention is full attention
    if window is not None and rows > window:
        raise ModelError(
            f"{rows} rows of prompt and answer exceed the sliding window of {window} rows of this language model "
            "(config.json, 'sliding_window'); keep fewer visual tokens or shorten the prompt or the answer"
        )


def causal_mask(hidden: Float[Tensor, "batch rows hidden"], window: int | None = None) -> Bool[Tensor, "1 1 rows rows"]:
    """True where a row may attend: itself and everything before it. Right padding needs nothing more.

    ModelError for more rows than the `window` of sliding attention.
    """
    rows = hidden.shape[1]
    _fits(rows, window)
    order = torch.arange(rows, device=hidden.device)
    return (order.unsqueeze(1) >= order.unsqueeze(0)).view(1, 1, rows, rows)


def decode_mask(
    past_key: Float[Tensor, "batch heads slots dim"],
    prompt_lengths: Int[Tensor, " batch"],
    step: Int[Tensor, " 1"],
    capacity: int,
    dropped: int,
    window: int | None = None,
) -> Bool[Tensor, "batch 1 1 slots1"]:
    """True for the slots a new row may attend: real prompt rows, the `step` rows written since, and the row itself.

    The cache has slots = prompt rows + `capacity`; `dropped` rows of the prompt were removed before this layer.
    ModelError for more slots than the `window` of sliding attention.
    """
    slots = past_key.shape[2]
    _fits(slots + 1, window)
    order = torch.arange(slots + 1, device=past_key.device).unsqueeze(0)
    prompt = order < (prompt_lengths.unsqueeze(1) - dropped)
    written = (order >= slots - capacity) & (order < slots - capacity + step.unsqueeze(1))
    mask = prompt | written | (order == slots)
    return mask.unsqueeze(1).unsqueeze(1)
