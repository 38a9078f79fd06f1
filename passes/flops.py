"""What a model costs, from its shapes alone: multiply-adds of every part, bytes of weights and of the KV cache.

One multiply-add counts as 2 FLOPs, and every matrix product of a block counts: projections, both attention products
over all rows (a causal mask saves nothing in a static graph), MLP, head. Left out, as everywhere in the literature:
norms, activations, softmax, rotary embedding, token lookup, and the selection itself, which `profile` measures.

Three ways of counting a prefill are in use, and they differ 2.8 times for the same work; each has a name here:

    all         2 FLOPs per multiply-add, text and visual rows, all matrices, head of one row          (this project)
    macs        multiply-adds, visual rows only, three MLP matrices
    fastv       4nd^2 + 2n^2d + 2ndm per layer: multiply-adds, visual rows only, two MLP matrices      (FastV, eq. 5)

LLaVA-1.5-7B, 576 visual and 64 text rows: 8.50, 3.82 and 2.99 trillion.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Protocol, runtime_checkable

from tokcarve.passes.geometry import Geometry, TextGeometry, VisionGeometry

__all__ = [
    "Cut",
    "Flops",
    "Rows",
    "conventions",
    "count_flops",
    "decode_flops",
    "decode_layer_flops",
    "kv_bytes",
    "layer_flops",
    "rows_of",
    "text_matrices",
    "weight_parameters",
    "whole_model",
]


@runtime_checkable
class Cut(Protocol):
    """One entry of a schedule: `keep` tokens are left after `site`; `how` is "choose", "mask" or "merge"."""

    @property
    def site(self) -> str: ...
    @property
    def keep(self) -> int: ...
    @property
    def how(self) -> str: ...
    @property
    def neurons(self) -> int | None: ...


@dataclass(frozen=True, kw_only=True)
class Rows:
    """How many rows each part computes for one image.

    vision: entering each vision layer that runs, [CLS] included; feed: entering its MLP; connector: entering the
    projector; text: entering each language layer in prefill, text rows included; text_only: how many of those are not
    visual. neurons: of the MLP of each language layer, for visual rows; None means all of them everywhere.
    """

    vision: tuple[int, ...]
    feed: tuple[int, ...]
    connector: int
    text: tuple[int, ...]
    text_only: int
    neurons: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True)
class Flops:
    """FLOPs (2 per multiply-add) of one image and prompt; `decode` is one step behind a full prompt."""

    encoder: int
    connector: int
    prefill: int
    decode: int

    @property
    def vision(self) -> int:
        """Encoder and connector, which one graph holds."""
        return self.encoder + self.connector


def rows_of(geometry: Geometry, schedule: Sequence[Cut], text_rows: int) -> Rows:
    """Rows per layer under `schedule` (empty for the unpruned model) with `text_rows` rows beside the image.

    A "mask" leaves its rows in the tensor, so nothing behind it gets cheaper until tokens are removed.
    """
    removed = {cut.site: cut.keep for cut in schedule if cut.how != "mask"}
    tokens, vision, feed, text = removed.get("pixels", geometry.total), [], [], []
    for layer in range(geometry.vision.layers_used):
        vision.append(geometry.vision.prefix + tokens)
        tokens = removed.get(f"vision.layers.{layer}.attention", tokens)
        feed.append(geometry.vision.prefix + tokens)
        tokens = removed.get(f"vision.layers.{layer}", tokens)
    connector = tokens
    tokens = removed.get("connector", tokens)
    for layer in range(geometry.text.layers):
        text.append(text_rows + tokens)
        tokens = removed.get(f"language.layers.{layer}", tokens)
    return Rows(
        vision=tuple(vision),
        feed=tuple(feed),
        connector=connector,
        text=tuple(text),
        text_only=text_rows,
        neurons=_neurons(geometry, schedule),
    )


def _neurons(geometry: Geometry, schedule: Sequence[Cut]) -> tuple[int, ...] | None:
    lean = {cut.site: cut.neurons for cut in schedule if cut.neurons is not None}
    if not lean:
        return None
    return tuple(lean.get(f"language.layers.{layer}", geometry.text.mlp) for layer in range(geometry.text.layers))


def count_flops(geometry: Geometry, rows: Rows, batch: int = 1) -> Flops:
    """FLOPs of `batch` images whose parts see `rows`."""
    patches = (rows.vision[0] - geometry.vision.prefix) * _patch_macs(geometry)
    connector = rows.connector * _connector_macs(geometry)
    text = geometry.text
    tower, language = layer_flops(geometry, rows)
    return Flops(
        encoder=batch * (2 * patches + sum(tower)),
        connector=2 * batch * connector,
        prefill=batch * (sum(language) + 2 * text.hidden * text.vocab),
        decode=batch * decode_flops(text, rows.text),
    )


def layer_flops(geometry: Geometry, rows: Rows) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """FLOPs of every vision layer that runs, and of every language layer in prefill, of one image whose parts see
    `rows`; without patches, connector and head, which are no layers."""
    text = geometry.text
    tower = map(_vision_layer_macs, repeat(geometry.vision), rows.vision, rows.feed)
    language = []
    for count, neurons in zip(rows.text, rows.neurons or repeat(text.mlp), strict=False):
        spared = 3 * (count - rows.text_only) * text.hidden * (text.mlp - neurons)
        language.append(2 * (_text_layer_macs(text, count, count) - spared))
    return tuple(2 * macs for macs in tower), tuple(language)


def decode_flops(text: TextGeometry, context: Sequence[int]) -> int:
    """FLOPs of one decode step of one sequence that attends to `context` cached rows in each layer."""
    return sum(decode_layer_flops(text, rows) for rows in context) + 2 * text.hidden * text.vocab


def decode_layer_flops(text: TextGeometry, context: int) -> int:
    """FLOPs of one language layer in a decode step of one sequence that attends to `context` cached rows there."""
    return 2 * _text_layer_macs(text, 1, context + 1)


def conventions(geometry: Geometry, rows: Rows) -> Mapping[str, int]:
    """The prefill under each named way of counting; see the head of this file."""
    text = geometry.text
    visual = [count - rows.text_only for count in rows.text]
    width, neurons = text.hidden, rows.neurons or (text.mlp,) * text.layers
    fastv = (
        4 * n * width * width + 2 * n * n * width + 2 * n * width * mlp for n, mlp in zip(visual, neurons, strict=True)
    )
    fewer = sum(3 * n * width * (text.mlp - mlp) for n, mlp in zip(visual, neurons, strict=True))
    return {
        "all": count_flops(geometry, rows).prefill,
        "macs": sum(_text_layer_macs(text, n, n) for n in visual) - fewer,
        "fastv": sum(fastv),
    }


def weight_parameters(geometry: Geometry) -> dict[str, int]:
    """Parameters by part (of the encoder, the layers that run); norms and biases are left out."""
    vision, text = geometry.vision, geometry.text
    patch = 3 * vision.patch_size**2 * vision.hidden + (vision.prefix + _patches(vision)) * vision.hidden
    return {
        "encoder": patch + vision.layers_used * _vision_layer_weights(vision),
        "connector": _connector_macs(geometry),
        "language": text.layers * _text_layer_weights(text),
        "head": text.hidden * text.vocab,
        "embedding": text.hidden * text.vocab,
    }


def whole_model(parts: Mapping[str, float | int], text: TextGeometry) -> float | int:
    """What the `parts` of a model, as in `weight_parameters`, come to where each number is held once."""
    return sum(parts.values()) - (parts["embedding"] if text.tied else 0)


def kv_bytes(text: TextGeometry, rows: Sequence[int], element: int = 2) -> int:
    """Bytes of keys and values of `rows` rows in each language layer, `element` bytes per number (fp16 by default)."""
    return sum(rows) * 2 * text.kv_heads * text.head_dim * element


def _patches(vision: VisionGeometry) -> int:
    return vision.grid[0] * vision.grid[1]


def _patch_macs(geometry: Geometry) -> int:
    return 3 * geometry.vision.patch_size**2 * geometry.vision.hidden


def _vision_layer_weights(vision: VisionGeometry) -> int:
    return 4 * vision.hidden * vision.heads * vision.head_dim + 2 * vision.hidden * vision.mlp


def _vision_layer_macs(vision: VisionGeometry, rows: int, feed: int) -> int:
    width = vision.heads * vision.head_dim
    return 4 * rows * vision.hidden * width + 2 * rows * rows * width + 2 * feed * vision.hidden * vision.mlp


def _connector_macs(geometry: Geometry) -> int:
    return geometry.vision.hidden * geometry.text.hidden + geometry.text.hidden**2


def text_matrices(text: TextGeometry) -> tuple[tuple[int, int], ...]:
    """Every matrix of a language layer: (channels that a product sums over, channels that come out)."""
    attended, cached = text.heads * text.head_dim, text.kv_heads * text.head_dim
    attention = ((text.hidden, attended), (text.hidden, cached), (text.hidden, cached), (attended, text.hidden))
    return (*attention, *((text.hidden, text.mlp),) * 2, (text.mlp, text.hidden))


def _text_layer_weights(text: TextGeometry) -> int:
    return sum(rows * columns for rows, columns in text_matrices(text))


def _text_layer_macs(text: TextGeometry, rows: int, context: int) -> int:
    return rows * _text_layer_weights(text) + 2 * rows * context * text.heads * text.head_dim
