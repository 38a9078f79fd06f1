"""The shapes of the models that have an alias, so that what needs no weights needs no hub either.

They are what `families.geometry` makes of each model's own config.json, as the repositories in `ALIASES` publish it
(read in November 2026; of bakllava as a model fine-tuned from it carries it); the tests make them again from there.
"""

import os
from dataclasses import replace

from tokcarve.passes.checkpoint import ALIASES
from tokcarve.passes.geometry import CLIP_MEAN, CLIP_STD, Geometry, TextGeometry, VisionGeometry

__all__ = ["KNOWN", "known"]

_CLIP_L = VisionGeometry(
    kind="clip",
    image_size=336,
    patch_size=14,
    grid=(24, 24),
    hidden=1024,
    heads=16,
    head_dim=64,
    mlp=4096,
    layers=24,
    layers_used=23,
    prefix=1,
    mean=CLIP_MEAN,
    std=CLIP_STD,
)
_SIGLIP_SO = VisionGeometry(
    kind="siglip",
    image_size=384,
    patch_size=14,
    grid=(27, 27),
    hidden=1152,
    heads=16,
    head_dim=72,
    mlp=4304,
    layers=26,
    layers_used=26,
    prefix=0,
)
_VICUNA_7B = TextGeometry(
    kind="llama",
    hidden=4096,
    heads=32,
    kv_heads=32,
    head_dim=128,
    mlp=11008,
    layers=32,
    vocab=32064,
    max_positions=4096,
    sliding_window=None,
)
_VICUNA_13B = replace(_VICUNA_7B, hidden=5120, heads=40, kv_heads=40, mlp=13824, layers=40)
_MISTRAL_7B = replace(_VICUNA_7B, kind="mistral", kv_heads=8, mlp=14336, max_positions=32768, sliding_window=4096)
_QWEN_7B = replace(_VICUNA_7B, kind="qwen2", vocab=152000, max_positions=32768)
_QWEN_05B = replace(_QWEN_7B, hidden=1024, heads=16, kv_heads=16, head_dim=64, mlp=2816, layers=24, tied=True)


def _clip_l(text: TextGeometry) -> Geometry:
    return Geometry(vision=_CLIP_L, text=text, total=576, image_token_id=32000, eos_token_ids=(2,), pad_token_id=0)


def _siglip_so(text: TextGeometry) -> Geometry:
    return Geometry(
        vision=_SIGLIP_SO, text=text, total=729, image_token_id=151646, eos_token_ids=(151645,), pad_token_id=0
    )


KNOWN = {
    "tiny": Geometry(
        vision=replace(_CLIP_L, hidden=128, heads=4, head_dim=32, mlp=512, layers=7, layers_used=6),
        text=replace(
            _VICUNA_7B, hidden=128, heads=4, kv_heads=4, head_dim=32, mlp=344, layers=6, vocab=415, max_positions=2048
        ),
        total=576,
        image_token_id=4,
        eos_token_ids=(2,),
        pad_token_id=3,
    ),
    "llava-1.5-7b": _clip_l(_VICUNA_7B),
    "llava-1.5-13b": _clip_l(_VICUNA_13B),
    "bakllava": _clip_l(_MISTRAL_7B),
    "llava-interleave-qwen-0.5b": _siglip_so(_QWEN_05B),
    "llava-interleave-qwen-7b": _siglip_so(_QWEN_7B),
}
"""The shapes of every alias."""


def known(name: str) -> Geometry | None:
    """The shapes of what `name`, an alias or the hub id that one stands for, is; None where they are not here, or where
    a directory of that name has a config.json of its own."""
    if os.path.isfile(os.path.join(os.path.expanduser(name), "config.json")):
        return None
    return next((KNOWN[alias] for alias, target in ALIASES.items() if name in (alias, target)), None)
