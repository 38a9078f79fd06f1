"""Taps of the language model: what a method may read there, computed beside a layer from the layer's own weights.

Every tap is a module over (hidden, cos, sin, start, lengths): rows [batch, rows, hidden], their RoPE tables, the row of
the first visual token int64 [batch], and the real rows of each prompt when it entered, int64 [batch]. What it gives
is float32. The causal mask and right padding are respected throughout; key heads are never repeated.

visual   the n visual tokens at this point, in the order of their rows
text     the rows behind the image, as many places as a prompt can have; places without a real row hold zero
last     the last real row of the prompt
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tokcarve.passes import choose
from tokcarve.passes.text_blocks import TextBlock, rotated

__all__ = [
    "TEXT_TAPS",
    "Asked",
    "LastAttention",
    "LastLogits",
    "LastLogitsUnrotated",
    "LastValue",
    "NormedStates",
    "NormedText",
    "Place",
    "ReceivedAttention",
    "States",
    "TextAttention",
    "TextGravity",
    "TextKeys",
    "TextStates",
    "TextTap",
    "VisualAttention",
    "VisualKeys",
    "VisualValues",
    "attended",
]

_LOWEST = torch.finfo(torch.float32).min
Rows = Float[Tensor, "batch rows hidden"]
Table = Float[Tensor, "batch rows dim"]
Ids = Int[Tensor, " batch"]


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where rows are at one point of the language graph: `count` visual tokens, `dropped` rows fewer than entered."""

    count: int
    dropped: int

    def visual(self, rows: Tensor, start: Tensor) -> Tensor:
        """The visual ones of `rows` [batch, rows, ...] -> [batch, count, ...]."""
        return choose.take(rows, start.unsqueeze(1) + torch.arange(self.count, device=rows.device))

    def last(self, rows: Tensor, lengths: Tensor) -> Tensor:
        """The last real one of `rows` -> [batch, 1, ...]."""
        return choose.take(rows, self.last_row(lengths))

    def last_row(self, lengths: Tensor) -> Tensor:
        """Which row that is: int64 [batch, 1]."""
        return (lengths - self.dropped - 1).unsqueeze(1)

    def text_rows(self, rows: Tensor, start: Tensor) -> Tensor:
        """The places of the text behind the image: int64 [batch, rows - count], beyond the end the last row."""
        places = torch.arange(rows.shape[1] - self.count, device=rows.device)
        return (start.unsqueeze(1) + self.count + places).clamp(max=rows.shape[1] - 1)

    def asked(self, rows: Tensor, start: Tensor, lengths: Tensor) -> Tensor:
        """1.0 for every place of the text that holds a real row: [batch, rows - count]."""
        places = torch.arange(rows.shape[1] - self.count, device=rows.device)
        return (start.unsqueeze(1) + self.count + places <= self.last_row(lengths)).float()

    def text(self, rows: Tensor, start: Tensor, lengths: Tensor) -> Tensor:
        """The text ones of `rows` -> float32 [batch, rows - count, ...], zero where there is none."""
        found = choose.take(rows, self.text_rows(rows, start)).float()
        return found * self.asked(rows, start, lengths).view(*found.shape[:2], *[1] * (found.dim() - 2))


def _against(query: Tensor, key: Tensor) -> Tensor:
    """[batch, heads, r, dim] times [batch, kv_heads, rows, dim] -> [batch, heads, r, rows]; heads of a group share."""
    batch, heads, r, dim = query.shape
    grouped = query.reshape(batch, key.shape[1], -1, dim) @ key.transpose(-1, -2)
    return grouped.view(batch, heads, r, key.shape[2])


def attended(query: Tensor, key: Tensor, mask: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention probabilities [batch, heads, r, rows] of scaled queries, where the boolean `mask` allows it; `bias`
    [batch, 1, 1, rows] is added to the logits."""
    logits = _against(query, key)
    return torch.softmax(torch.where(mask, logits if bias is None else logits + bias, _LOWEST), dim=-1)


class _Tap(nn.Module):
    bias: Tensor | None = None
    """Of every key, [batch, 1, 1, rows]: set while tokens are dropped softly."""

    def __init__(self, block: TextBlock, place: Place, norm: nn.Module) -> None:
        super().__init__()
        self.block, self.place, self.norm = block, place, norm

    def keys(self, hidden: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Keys after RoPE of every row: [batch, kv_heads, rows, dim]."""
        return rotated(self.block.project("k", self.block.normed(hidden)), cos, sin)

    def queries(self, hidden: Tensor, cos: Tensor, sin: Tensor, rows: Tensor) -> Tensor:
        """Queries after RoPE, scaled, of `rows` int64 [batch, r]: [batch, heads, r, dim]."""
        asked = self.block.project("q", choose.take(self.block.normed(hidden), rows))
        return rotated(asked, choose.take(cos, rows), choose.take(sin, rows)).float() * self.block.scale

    def attention(self, hidden: Tensor, cos: Tensor, sin: Tensor, rows: Tensor) -> Tensor:
        """What `rows` int64 [batch, r] attend to: [batch, heads, r, rows], each sums to 1."""
        seen = torch.arange(hidden.shape[1], device=hidden.device) <= rows.unsqueeze(2)
        queries = self.queries(hidden, cos, sin, rows)
        return attended(queries, self.keys(hidden, cos, sin).float(), seen.unsqueeze(1), self.bias)

    def columns(self, attention: Tensor, start: Tensor) -> Tensor:
        """The visual columns of [batch, ..., rows] -> [batch, ..., count]."""
        at = start.unsqueeze(1) + torch.arange(self.place.count, device=start.device)
        at = at.view(at.shape[0], *[1] * (attention.dim() - 2), self.place.count)
        return torch.gather(attention, -1, at.expand(*attention.shape[:-1], -1))


class States(_Tap):
    """Visual tokens: [batch, n, hidden]."""

    def forward(self, hidden: Rows, cos: Table, sin: Table, start: Ids, lengths: Ids) -> Tensor:
        return self.place.visual(hidden, start).float()


class TextStates(_Tap):
    """Text rows: [batch, places, hidden]."""

    def forward(self, hidden: Rows, cos: Table, sin: Table, start: Ids, lengths: Ids) -> Tensor:
        return self.place.text(hidden, start, lengths)


class NormedStates(_Tap):
    """Visual tokens through the model's final norm: [batch, n, hidden]."""

    def forward(self, hidden: Rows, cos: Table, sin: Table, start: Ids, lengths: Ids) -> Tensor:
        normed: Tensor = self.norm(self.place.visual(hidden, start))
        return normed.float()


class NormedText(_Tap):
    """Text rows through the model's final norm: [batch, places, hidden]."""

    def forward(self, hidden: Rows, cos: Table, sin: Table, start: Ids, lengths: Ids) -> Tensor:
        normed: Tensor = self.norm(choose.take(hidden, self.place.text_rows(hidden, start)))
        return normed.float() * self.place.asked(hidden, start, lengths).unsqueeze(-1)


class Asked(_Tap):
    """Which places of the text are real: [batch, places], 1.0 or 0.0."""

    def forward(self, hidden: Rows, cos: Table, sin: Table, start: Ids, lengths: Ids) -> Tensor:
        return self.place.asked(hidden, start, lengths)


class LastAttention(_Tap):
    """What the last row attends to among the visual tokens: [batch, heads, n], summed over all rows 1 at most."""

    def forward(self, hidden: Rows, cos: Table, sin: Table, start: Ids, lengths: Ids) -> Tensor:
        rows = self.place.last_row(lengths)
        return self.columns(self.attention(hidden, cos, sin, rows).squeeze(2), start)


class LastLogits(_Tap):
    """Scaled products of the last row's query with the visual keys, both after RoPE: [batch, heads, n]."""

    def forward(self, hidden: Rows, cos: Table, sin: Table, start: Ids, lengths: Ids) -> Tensor:
        query = self.queries(hidden, cos, sin, self.place.last_row(lengths))
        return self.columns(_against(query, self.keys(hidden, cos, sin).float()).squeeze(2), start)


class LastLogitsUnrotated(_Tap):
    """Scaled products of the last row's query with the visual keys, without RoPE: [batch, heads, n]."""

    def forward(self, hidden: Rows, cos: Table, sin: Table, start: Ids, lengths: Ids) -> Tensor:
        rows = self.block.normed(hidden)
        query = self.block.project("q", self.place.last(rows, lengths)).float() * self.block.scale
        return self.columns(_against(query, self.block.project("k", rows).float()).squeeze(2), start)


class TextAttention(_Tap):
    """What every text row attends to among the visual tokens: [batch, heads, places, n]."""

    def forward(self, hidden: Rows, cos: Table, sin: Table, start: Ids, lengths: Ids) -> Tensor:
        found = self.attention(hidden, cos, sin, self.place.text_rows(hidden, start))
        return self.columns(found, start) * self.place.asked(hidden, start, lengths)[:, None, :, None]


class TextGravity(_Tap):
    """Scaled product of a vector of ones rotated to a text row with one rotated to a visual token: [batch, places, n].

    What RoPE alone adds to attention at that distance.
    """

    def forward(self, hidden: Rows, cos: Table, sin: Table, start: Ids, lengths: Ids) -> Tensor:
        ones = rotated(torch.ones_like(cos).unsqueeze(1), cos, sin).squeeze(1).float()
        text = choose.take(ones, self.place.text_rows(hidden, start)) * self.block.scale
        return text @ self.place.visual(ones, start).transpose(1, 2)


class ReceivedAttention(_Tap):
    """Attention that the visual tokens receive, mean over heads and all real rows: [batch, n]."""

    def forward(self, hidden: Rows, cos: Table, sin: Table, start: Ids, lengths: Ids) -> Tensor:
        rows = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[0], -1)
        real = (rows <= self.place.last_row(lengths)).float()
        mean = self.attention(hidden, cos, sin, rows).mean(dim=1)
        received = (real.unsqueeze(1) @ mean).squeeze(1) / real.sum(dim=1, keepdim=True)
        return self.columns(received, start)


class VisualAttention(_Tap):
    """What the visual tokens attend to among themselves, mean over heads: [batch, n, n]; a row sums to less than 1."""

    def forward(self, hidden: Rows, cos: Table, sin: Table, start: Ids, lengths: Ids) -> Tensor:
        rows = start.unsqueeze(1) + torch.arange(self.place.count, device=hidden.device)
        return self.columns(self.attention(hidden, cos, sin, rows).mean(dim=1), start)


class VisualKeys(_Tap):
    """Keys of the visual tokens after RoPE: [batch, kv_heads, n, dim]."""

    def forward(self, hidden: Rows, cos: Table, sin: Table, start: Ids, lengths: Ids) -> Tensor:
        keys = self.keys(hidden, cos, sin).transpose(1, 2)
        return self.place.visual(keys, start).transpose(1, 2).float()


class TextKeys(_Tap):
    """Keys of the text rows after RoPE: [batch, kv_heads, places, dim]."""

    def forward(self, hidden: Rows, cos: Table, sin: Table, start: Ids, lengths: Ids) -> Tensor:
        keys = self.keys(hidden, cos, sin).transpose(1, 2)
        return self.place.text(keys, start, lengths).transpose(1, 2)


class VisualValues(_Tap):
    """Values of the visual tokens: [batch, kv_heads, n, dim]."""

    def forward(self, hidden: Rows, cos: Table, sin: Table, start: Ids, lengths: Ids) -> Tensor:
        rows = self.block.normed(hidden)
        return self.block.project("v", self.place.visual(rows, start)).float()


class LastValue(_Tap):
    """Value of the last row: [batch, kv_heads, 1, dim]."""

    def forward(self, hidden: Rows, cos: Table, sin: Table, start: Ids, lengths: Ids) -> Tensor:
        return self.block.project("v", self.place.last(self.block.normed(hidden), lengths)).float()


@dataclass(frozen=True)
class TextTap:
    """How a tap is reached: "layer" reads the site's own layer from its input, "next" the layer behind it from the rows
    that leave the site, "site" those rows, "entry" the rows that entered the language model, and "input" is a tensor
    float32 [batch, n] that whoever runs the model hands in."""

    source: Literal["layer", "next", "site", "entry", "input"]
    made_of: type[_Tap] | None = None


TEXT_TAPS: dict[str, TextTap] = {
    "states": TextTap("site", States),
    "text_states": TextTap("site", TextStates),
    "normed_states": TextTap("site", NormedStates),
    "normed_text": TextTap("site", NormedText),
    "asked": TextTap("site", Asked),
    "entered": TextTap("entry", States),
    "entered_text": TextTap("entry", TextStates),
    "last_attention": TextTap("layer", LastAttention),
    "last_logits": TextTap("layer", LastLogits),
    "last_logits_unrotated": TextTap("layer", LastLogitsUnrotated),
    "last_value": TextTap("layer", LastValue),
    "text_attention": TextTap("layer", TextAttention),
    "text_gravity": TextTap("layer", TextGravity),
    "text_keys": TextTap("layer", TextKeys),
    "visual_attention": TextTap("layer", VisualAttention),
    "visual_keys": TextTap("layer", VisualKeys),
    "visual_values": TextTap("layer", VisualValues),
    "received_attention": TextTap("layer", ReceivedAttention),
    "next_last_attention": TextTap("next", LastAttention),
    "next_visual_attention": TextTap("next", VisualAttention),
    "next_visual_keys": TextTap("next", VisualKeys),
    "guide": TextTap("input"),
}

CALLER = frozenset(name for name, tap in TEXT_TAPS.items() if tap.source == "input")
"""Taps that read what whoever runs the model gives."""
