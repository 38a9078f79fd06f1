"""LLaVA-1.5: a CLIP or SigLIP tower, a projector, and any Llama-like language model.

Source      LlavaForConditionalGeneration of transformers; arXiv:2310.03744.
Layout      the visual tokens replace the image placeholders of the prompt, in raster order, one image per prompt.
Refuses     several feature layers, a [CLS] token among the features, towers and language models without an entry here.
"""

from typing import Any

import torch
from torch import nn
from transformers import LlavaForConditionalGeneration

from tokcarve.passes.blocks import PatchEmbedding, VisionBlock
from tokcarve.passes.errors import ModelError
from tokcarve.passes.geometry import CLIP_MEAN, CLIP_STD, Geometry, TextGeometry, VisionGeometry
from tokcarve.passes.graph import Parts
from tokcarve.passes.text_blocks import Rotary, TextBlock

__all__ = ["MODEL", "empty", "geometry", "parts"]

MODEL = LlavaForConditionalGeneration
# pixels are normalised as towers of each kind are trained
TOWERS: dict[str, tuple[Any, int, Any, Any]] = {
    "clip_vision_model": ("clip", 1, CLIP_MEAN, CLIP_STD),
    "siglip_vision_model": ("siglip", 0, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
TEXTS = ("llama", "mistral", "qwen2")
LENGTH_BOUND_ROPES = ("dynamic", "longrope")


def geometry(config: Any) -> Geometry:
    """Shapes of a LLaVA config; ModelError for a tower, text model or feature selection without an adapter."""
    vision = _vision(config)
    return Geometry(
        vision=vision,
        text=_text(config.text_config, tied=bool(config.tie_word_embeddings)),
        total=vision.grid[0] * vision.grid[1],
        image_token_id=config.image_token_id,
        eos_token_ids=_ids(config.text_config.eos_token_id),
        pad_token_id=_ids(config.text_config.pad_token_id)[0] if config.text_config.pad_token_id is not None else 0,
    )


def _ids(value: int | list[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)


def _vision(config: Any) -> VisionGeometry:
    tower = config.vision_config
    if tower.model_type not in TOWERS:
        raise ModelError(
            f"vision tower {tower.model_type!r} (config.json, 'vision_config') has no adapter; "
            f"supported towers: {', '.join(TOWERS)}"
        )
    kind, prefix, mean, std = TOWERS[tower.model_type]
    side = tower.image_size // tower.patch_size
    return VisionGeometry(
        kind=kind,
        image_size=tower.image_size,
        patch_size=tower.patch_size,
        grid=(side, side),
        hidden=tower.hidden_size,
        heads=tower.num_attention_heads,
        head_dim=tower.hidden_size // tower.num_attention_heads,
        mlp=tower.intermediate_size,
        layers=tower.num_hidden_layers,
        layers_used=_layers_used(config, prefix),
        prefix=prefix,
        mean=mean,
        std=std,
    )


def _layers_used(config: Any, prefix: int) -> int:
    layer, layers = config.vision_feature_layer, config.vision_config.num_hidden_layers
    if not isinstance(layer, int):
        raise ModelError(
            f"vision_feature_layer={layer} (config.json) joins several layers; this version reads exactly one, "
            "such as -2"
        )
    used = layer if layer >= 0 else layers + 1 + layer
    if not 0 < used <= layers:
        raise ModelError(f"vision_feature_layer={layer} (config.json) is outside the tower's {layers} layers")
    strategy = config.vision_feature_select_strategy
    if (strategy == "default") != bool(prefix):
        raise ModelError(
            f"vision_feature_select_strategy={strategy!r} (config.json) does not fit this tower; a tower with a [CLS] "
            "token takes 'default', one without takes 'full'"
        )
    return used


def _text(text: Any, *, tied: bool) -> TextGeometry:
    if text.model_type not in TEXTS:
        raise ModelError(
            f"language model {text.model_type!r} (config.json, 'text_config') has no adapter; supported: "
            f"{', '.join(TEXTS)}"
        )
    rope = (getattr(text, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in LENGTH_BOUND_ROPES:
        raise ModelError(
            f"rope_type {rope!r} (config.json, 'text_config') changes with the length of the text, which a graph of "
            "constant shape cannot; supported are default, linear, llama3 and yarn"
        )
    heads = text.num_attention_heads
    return TextGeometry(
        kind=text.model_type,
        hidden=text.hidden_size,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        mlp=text.intermediate_size,
        layers=text.num_hidden_layers,
        vocab=text.vocab_size,
        max_positions=text.max_position_embeddings,
        sliding_window=_window(text),
        tied=tied,
    )


def _window(text: Any) -> int | None:
    # qwen2 carries a window size even when it is switched off
    if not getattr(text, "use_sliding_window", True):
        return None
    window = getattr(text, "sliding_window", None)
    return int(window) if window is not None else None


def empty(config: Any) -> nn.Module:
    """The model on the meta device, attention through scaled_dot_product_attention."""
    with torch.device("meta"):
        model: nn.Module = MODEL._from_config(config, attn_implementation="sdpa")  # type: ignore[no-untyped-call]
    return model.eval()


def parts(model: Any) -> Parts:
    """The model's own blocks; nothing is copied. ModelError for attention that would add the masks instead."""
    shape = geometry(model.config)
    for part in (model.config.vision_config, model.config.text_config):
        if part._attn_implementation != "sdpa":
            raise ModelError(
                f"the model was loaded with attn_implementation={part._attn_implementation!r} for {part.model_type}, "
                "and its graphs mask with booleans; load it with attn_implementation='sdpa'"
            )
    tower, language = model.model.vision_tower, model.model.language_model
    scale = shape.vision.head_dim**-0.5
    used = [VisionBlock(layer, heads=shape.vision.heads, scale=scale) for layer in tower.encoder.layers]
    return Parts(
        patches=PatchEmbedding(tower.embeddings, getattr(tower, "pre_layrnorm", None)),
        vision_blocks=tuple(used[: shape.vision.layers_used]),
        vision_next=next(iter(used[shape.vision.layers_used :]), None),
        connector=model.model.multi_modal_projector,
        embed_tokens=language.embed_tokens,
        text_blocks=tuple(TextBlock(layer) for layer in language.layers),
        rotary=Rotary(language.rotary_emb),
        norm=language.norm,
        head=model.lm_head,
    )
