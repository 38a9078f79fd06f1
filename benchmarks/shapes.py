"""Published shapes, as Hugging Face configs, for models with random or absent weights."""

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, Qwen2Config

__all__ = ["clip_l_336", "llama_7b", "llava", "qwen2_half_billion"]


def clip_l_336() -> CLIPVisionConfig:
    """The tower of LLaVA-1.5: 24 layers, width 1024, 576 patches."""
    return CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
        projection_dim=768,
    )


def llama_7b() -> LlamaConfig:
    """The language model of LLaVA-1.5-7B."""
    return LlamaConfig(
        hidden_size=4096,
        intermediate_size=11008,
        num_hidden_layers=32,
        num_attention_heads=32,
        vocab_size=32064,
        max_position_embeddings=4096,
    )


def qwen2_half_billion() -> Qwen2Config:
    """A language model shaped like Qwen2-0.5B."""
    return Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151936,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        eos_token_id=151645,
        pad_token_id=151643,
    )


def llava(text: LlamaConfig | Qwen2Config, image_token: int) -> LlavaConfig:
    """A LLaVA-1.5 of the CLIP-L tower and `text`."""
    found = LlavaConfig(
        vision_config=clip_l_336(),
        text_config=text,
        image_token_index=image_token,
        tie_word_embeddings=text.tie_word_embeddings,
    )
    found.architectures = ["LlavaForConditionalGeneration"]
    return found
