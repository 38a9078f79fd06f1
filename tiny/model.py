"""The small LLaVA-1.5: its configuration, its tokenizer and its processor, built only from Hugging Face classes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from tokcarve.tiny.draw import FRAME, PATCH, sample_scene
from tokcarve.tiny.glyphs import COLOURS, PLURALS, SHAPES
from tokcarve.tiny.questions import PLACES, questions

VOCABULARY = 512
SPECIAL: tuple[str, ...] = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}USER: {% else %}ASSISTANT:{% endif %}"
    "{% if message['content'] is string %}"
    "{{ (' ' if message['role'] == 'assistant' else '') + message['content'] }}"
    "{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}"
    "{{ (' ' if message['role'] == 'assistant' else '') + part['text'] }}"
    "{% endfor %}"
    "{% endif %}"
    "{{ ' ' if message['role'] == 'user' else '</s>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def prompt(question: str) -> str:
    """What the chat template makes of one image and one question."""
    return f"USER: <image>\n{question} ASSISTANT:"


def _texts() -> Iterable[str]:
    words = [*SHAPES, *PLURALS.values(), *COLOURS, *PLACES, "yes", "no", "digit", "object", *"0123456789"]
    for _ in range(200):
        yield from (f" {word}" for word in words)
    for seed in range(400):
        for question in questions(sample_scene(seed)):
            yield f"{prompt(question.text).replace('<image>', '')} {question.answer}"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE that encodes any text, with a leading <s> as Llama has it."""
    core = Tokenizer(models.BPE(unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(_texts(), trainer)
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", core.token_to_id("<s>"))]
    )
    make: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = make(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<image>"],
        model_max_length=2048,
        padding_side="left",
    )
    return tokenizer


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """The processor of LLaVA-1.5: resize, centre crop, CLIP statistics, one placeholder per patch."""
    image = CLIPImageProcessorPil(size={"shortest_edge": FRAME}, crop_size={"height": FRAME, "width": FRAME})
    make: Any = LlavaProcessor
    processor: LlavaProcessor = make(
        image_processor=image,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,
    )
    return processor


def build_config(tokenizer: PreTrainedTokenizerFast) -> LlavaConfig:
    """The sizes: width 128 in both towers, seven vision layers and six language layers."""
    ids: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=7,
        num_attention_heads=4,
        image_size=FRAME,
        patch_size=PATCH,
        hidden_act="quick_gelu",
        projection_dim=128,
    )
    text = LlamaConfig(
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        vocab_size=len(tokenizer),
        max_position_embeddings=2048,
        hidden_act="silu",
        tie_word_embeddings=False,
        **ids,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=int(tokenizer.encode("<image>", add_special_tokens=False)[0]),
        image_seq_length=(FRAME // PATCH) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=False,
        **ids,
    )


def save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, directory: Path) -> None:
    """Write everything that plain `from_pretrained` reads, the weights in fp32."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = processor.tokenizer
    make: Any = GenerationConfig
    model.generation_config = make(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=8,
    )
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
