"""What the hub repositories of the aliases have in config.json, as far as shapes go; the rest is transformers' own."""

from typing import Any

__all__ = ["PUBLISHED"]

_CLIP = {
    "hidden_size": 1024,
    "image_size": 336,
    "intermediate_size": 4096,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "patch_size": 14,
    "projection_dim": 768,
    "vocab_size": 32000,
}
_SIGLIP = {
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "image_size": 384,
    "intermediate_size": 4304,
    "layer_norm_eps": 1e-06,
    "model_type": "siglip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 26,
    "patch_size": 14,
    "vision_use_head": False,
}
_LLAVA = {
    "architectures": ["LlavaForConditionalGeneration"],
    "image_token_index": 32000,
    "model_type": "llava",
    "pad_token_id": 32001,
    "projector_hidden_act": "gelu",
    "vision_config": _CLIP,
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}
_INTERLEAVE = {
    "architectures": ["LlavaForConditionalGeneration"],
    "image_token_index": 151646,
    "model_type": "llava",
    "projector_hidden_act": "gelu",
    "vision_config": _SIGLIP,
    "vision_feature_layer": -1,
    "vision_feature_select_strategy": "full",
}
_VICUNA = {"max_position_embeddings": 4096, "model_type": "llama", "rms_norm_eps": 1e-05, "vocab_size": 32064}
_QWEN = {
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "max_position_embeddings": 32768,
    "model_type": "qwen2",
    "rope_theta": 1000000.0,
    "use_sliding_window": False,
    "vocab_size": 152000,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "llava-1.5-7b": {**_LLAVA, "text_config": _VICUNA},
    "llava-1.5-13b": {
        **_LLAVA,
        "text_config": {
            **_VICUNA,
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "num_attention_heads": 40,
            "num_hidden_layers": 40,
            "num_key_value_heads": 40,
        },
    },
    "bakllava": {
        **_LLAVA,
        "text_config": {
            **_VICUNA,
            "intermediate_size": 14336,
            "max_position_embeddings": 32768,
            "model_type": "mistral",
            "num_key_value_heads": 8,
            "sliding_window": 4096,
        },
    },
    "llava-interleave-qwen-0.5b": {
        **_INTERLEAVE,
        "text_config": {
            **_QWEN,
            "hidden_size": 1024,
            "intermediate_size": 2816,
            "max_window_layers": 21,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "num_key_value_heads": 16,
            "sliding_window": 32768,
            "tie_word_embeddings": True,
        },
    },
    "llava-interleave-qwen-7b": {
        **_INTERLEAVE,
        "text_config": {**_QWEN, "intermediate_size": 11008, "max_window_layers": 28, "sliding_window": None},
    },
}
