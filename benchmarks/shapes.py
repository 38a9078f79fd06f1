"""Published shapes, as Hugging Face configs, for models with random or absent weights."""

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, Qwen2Config

from tokcarve.passes.known import KNOWN

__all__ = ["clip_l_336", "llama_7b", "llava", "qwen2_half_billion"]

_LLAVA = "llava-1.5-7b"


def clip_l_336() -> CLIPVisionConfig:
    """The tower of LLaVA-1.5: 24 layers, width 1024, 576 patches."""
    tower = KNOWN[_LLAVA].vision
    return CLIPVisionConfig(
        hidden_size=tower.hidden,
        intermediate_size=tower.mlp,
        num_hidden_layers=tower.layers,
        num_attention_heads=tower.heads,
        image_size=tower.image_size,
        patch_size=tower.patch_size,
        projection_dim=768,
    )


def llama_7b() -> LlamaConfig:
    """The language model of LLaVA-1.5-7B."""
    text = KNOWN[_LLAVA].text
    return LlamaConfig(
        hidden_size=text.hidden,
        intermediate_size=text.mlp,
        num_hidden_layers=text.layers,
        num_attention_heads=text.heads,
        vocab_size=text.vocab,
        max_position_embeddings=text.max_positions,
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
