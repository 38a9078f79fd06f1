"""Small LLaVA models with random weights that behave like trained ones: what they say varies and depends on the image.

`build` makes one, `write` makes it a checkpoint directory, `prompt` makes token ids, `pictures` makes pixels.
"""

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from processors import LLAVA_TEMPLATE, llama_tokenizer, write_processor
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

__all__ = ["IMAGE", "SIDE", "TOTAL", "VOCAB", "Text", "Tower", "build", "config", "pictures", "prompt", "write"]

Text = Literal["llama", "mistral", "qwen2"]
Tower = Literal["clip", "siglip"]

SIDE, PATCH = 112, 14  # pixels
TOTAL = (SIDE // PATCH) ** 2  # visual tokens
VOCAB = 448  # the tokenizer of `write` has fewer entries
IMAGE = VOCAB - 1  # id of the image token

SPECIALS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<unk>",
    "image_token": "<image>",
}
Llava: Any = LlavaForConditionalGeneration  # its own types do not hold
TEXTS: dict[str, Any] = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}
TOWERS: dict[str, Any] = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}


def config(
    text: Text = "llama",
    tower: Tower = "clip",
    *,
    feature_layer: int | None = None,
    kv_heads: int = 2,
    vision_layers: int = 6,
    text_layers: int = 3,
    **settings: Any,
) -> Any:
    """The LlavaConfig of a small model: widths 32 (tower) and 48 (text, 4 heads).

    Features leave at layer -2 of CLIP and -1 of SigLIP unless told. `settings` go into the text config.
    """
    vision_config = TOWERS[tower](
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=vision_layers,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=PATCH,
    )
    shape: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": text_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 512,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    made = LlavaConfig(
        vision_config=vision_config,
        text_config=TEXTS[text](**{**shape, **settings}),
        image_token_index=IMAGE,
        image_seq_length=TOTAL,
        vision_feature_layer=feature_layer if feature_layer is not None else -2 if tower == "clip" else -1,
        vision_feature_select_strategy="default" if tower == "clip" else "full",
    )
    made.architectures = ["LlavaForConditionalGeneration"]
    return made


def build(
    text: Text = "llama",
    tower: Tower = "clip",
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    **settings: Any,
) -> Any:
    """A LlavaForConditionalGeneration of `config(text, tower, **settings)`; equal arguments give equal weights.

    Calls share their models: do not write to one.
    """
    return _build(text, tower, seed, dtype, attention, tuple(sorted(settings.items())))


@functools.cache
def _build(
    text: Text, tower: Tower, seed: int, dtype: torch.dtype, attention: str, settings: tuple[tuple[str, Any], ...]
) -> Any:
    model = Llava._from_config(config(text, tower, **dict(settings)), attn_implementation=attention)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(_draw(name, weight, generator))
    return model.eval().to(dtype)


def _draw(name: str, weight: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(weight.shape, generator=generator)
    if "norm" in name or "layrnorm" in name:
        return (1.0 if name.endswith("weight") else 0.0) + 0.1 * noise
    if name.endswith("bias"):
        return 0.1 * noise
    if "embed" in name and "patch_embedding" not in name:
        return 0.5 * noise
    # sharper queries and keys: attention that looks at something; a wide head: answers that vary
    gain = 1.6 if "q_proj" in name or "k_proj" in name else 2.0 if "lm_head" in name else 1.0
    scaled: Tensor = gain * noise / weight[0].numel() ** 0.5
    return scaled


def pictures(batch: int, seed: int = 0, side: int = SIDE) -> Tensor:
    """Pixels float32 [batch, 3, side, side], normalised: smooth blobs over noise, another scene in every image."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=False)
    return smooth + 0.2 * torch.randn(batch, 3, side, side, generator=generator)


def prompt(lengths: Sequence[int], visual: int = TOTAL, seed: int = 0) -> tuple[Tensor, Tensor]:
    """One prompt per entry of `lengths` (text tokens, at least 4), each with `visual` image tokens after the third.

    -> (int64 [batch, rows], right-padded with 0, and the real rows int64 [batch]).
    """
    generator = torch.Generator().manual_seed(seed)
    ids = torch.zeros(len(lengths), max(lengths) + visual, dtype=torch.long)
    for row, length in zip(ids, lengths, strict=True):
        text = torch.randint(3, 259, (length,), generator=generator)
        text[0] = 1
        row[: length + visual] = torch.cat([text[:3], torch.full((visual,), IMAGE), text[3:]])
    return ids, torch.tensor([length + visual for length in lengths])


def write(model: Any, directory: Path, *, words: bool = False) -> Path:
    """A checkpoint directory of `model` with tokenizer, image processor and chat template; -> `directory`. `words` as
    in `llama_tokenizer`."""
    tower = "clip" if model.config.vision_config.model_type == "clip_vision_model" else "siglip"
    tokenizer = llama_tokenizer(words=words)
    image = write_processor(directory, tokenizer, template=LLAVA_TEMPLATE, **SPECIALS)
    side = model.config.vision_config.image_size
    kind = {
        "clip": {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": side},
            "crop_size": {"height": side, "width": side},
        },
        "siglip": {"image_processor_type": "SiglipImageProcessor", "size": {"height": side, "width": side}},
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(kind[tower]))
    settings = json.loads((directory / "processor_config.json").read_text())
    settings["vision_feature_select_strategy"] = model.config.vision_feature_select_strategy
    settings["num_additional_image_tokens"] = 1 if tower == "clip" else 0
    (directory / "processor_config.json").write_text(json.dumps(settings))
    model.save_pretrained(directory)
    written = json.loads((directory / "config.json").read_text())
    # the tokenizer puts the image token behind its own words
    (directory / "config.json").write_text(json.dumps({**written, "image_token_index": image}))
    return directory
