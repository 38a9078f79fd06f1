"""Prompts on the device against the processor of transformers."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from processors import (
    BOS_TEMPLATE,
    CHATML_TEMPLATE,
    LLAVA_TEMPLATE,
    STRING_TEMPLATE,
    llama_tokenizer,
    qwen_tokenizer,
    write_processor,
)
from transformers import AutoProcessor

from tokcarve.passes.errors import ArtifactError, ModelError
from tokcarve.passes.inputs.prompt import PromptError, load_prompter
from tokcarve.tiny import checkpoint_dir

QUESTIONS = ["what colour is the circle?", "  two  spaces\nand a line ", "é 日本 </s> 7", ""]
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
QWEN_NAMES = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "tokenizer_class": "Qwen2Tokenizer"}


def reference(directory: Path, question: str) -> list[int]:
    processor = AutoProcessor.from_pretrained(directory)
    pieces = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": pieces}], add_generation_prompt=True)
    ids: list[int] = processor(images=Image.new("RGB", (40, 30)), text=text)["input_ids"][0]
    return ids


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize(
    "settings",
    [
        NAMES,
        {**NAMES, "add_bos_token": True},
        {**NAMES, "add_bos_token": False},
        {**NAMES, "add_bos_token": True, "add_eos_token": True},
        {**NAMES, "extra_special_tokens": {"image_token": "<image>"}, "legacy": False},
    ],
    ids=["as saved", "bos", "no bos", "bos and eos", "extra"],
)
def test_llama_prompt_equals_transformers(tmp_path: Path, settings: dict[str, Any], question: str) -> None:
    image_id = write_processor(tmp_path, llama_tokenizer(), template=LLAVA_TEMPLATE, **settings)
    assert load_prompter(tmp_path, image_id).encode(question, 4) == reference(tmp_path, question)


@pytest.mark.parametrize("question", QUESTIONS)
def test_qwen_prompt_equals_transformers(tmp_path: Path, question: str) -> None:
    image_id = write_processor(tmp_path, qwen_tokenizer(), template=CHATML_TEMPLATE, **QWEN_NAMES)
    assert load_prompter(tmp_path, image_id).encode(question, 4) == reference(tmp_path, question)


def test_tokens_missing_from_the_tokenizer_are_added_as_transformers_adds_them(tmp_path: Path) -> None:
    late = {"421": {"content": "<late>", "special": False, "normalized": True, "lstrip": True}}
    tokenizer = llama_tokenizer()
    write_processor(
        tmp_path, tokenizer, template=LLAVA_TEMPLATE, **NAMES, added_tokens_decoder=late, mask_token="<mask>"
    )
    image_id = tokenizer.token_to_id("<image>")
    question = "is <late> before <mask>?"
    assert load_prompter(tmp_path, image_id).encode(question, 4) == reference(tmp_path, question)


def test_image_placeholder_is_repeated_for_the_tokens_that_enter(tmp_path: Path) -> None:
    image_id = write_processor(tmp_path, llama_tokenizer(), template=LLAVA_TEMPLATE, **NAMES)
    prompter = load_prompter(tmp_path, image_id)
    few, many = prompter.encode("why?", 2), prompter.encode("why?", 576)
    assert few.count(image_id) == 2 and many.count(image_id) == 576
    assert [token for token in few if token != image_id] == [token for token in many if token != image_id]


def test_a_template_that_writes_bos_gets_no_second_one(tmp_path: Path) -> None:
    image_id = write_processor(tmp_path, llama_tokenizer(), template=BOS_TEMPLATE, **NAMES)
    assert load_prompter(tmp_path, image_id).encode("why?", 4).count(1) == 1


@pytest.mark.parametrize("place", ["chat_template.json", "processor_config.json", "tokenizer_config.json", "list"])
def test_templates_are_found_where_checkpoints_keep_them(tmp_path: Path, place: str) -> None:
    image_id = write_processor(tmp_path, llama_tokenizer(), template=None, **NAMES)
    path = tmp_path / ("tokenizer_config.json" if place == "list" else place)
    content = json.loads(path.read_text()) if path.exists() else {}
    entry: Any = [{"name": "default", "template": "Q <image>"}] if place == "list" else "Q <image>"
    path.write_text(json.dumps({**content, "chat_template": entry}))
    assert load_prompter(tmp_path, image_id).render("why?") == "Q <image>"


def test_without_a_template_the_llava_form_is_used(tmp_path: Path) -> None:
    image_id = write_processor(tmp_path, llama_tokenizer(), template=None, **NAMES)
    assert load_prompter(tmp_path, image_id).render("why?") == "USER: <image>\nwhy? ASSISTANT:"


def test_a_template_for_text_alone_gets_the_placeholder_as_text(tmp_path: Path) -> None:
    image_id = write_processor(tmp_path, llama_tokenizer(), template=STRING_TEMPLATE, **NAMES)
    assert load_prompter(tmp_path, image_id).render("why?") == "Q: <image>\nwhy?\nA:"


def test_a_second_image_is_refused(tmp_path: Path) -> None:
    image_id = write_processor(tmp_path, llama_tokenizer(), template=LLAVA_TEMPLATE, **NAMES)
    with pytest.raises(PromptError, match="contains <image>; leave it out"):
        load_prompter(tmp_path, image_id).encode("compare <image> and this", 4)


@pytest.mark.parametrize("template", ["{{ 'no image' }}", "{{ raise_exception('no') }}", "{% for %}", "{{ a.b.c }}"])
def test_a_template_that_cannot_place_the_image_is_refused(tmp_path: Path, template: str) -> None:
    image_id = write_processor(tmp_path, llama_tokenizer(), template=template, **NAMES)
    with pytest.raises(ModelError, match="cannot ask about one image"):
        load_prompter(tmp_path, image_id).render("why?")


def test_templates_run_in_a_sandbox(tmp_path: Path) -> None:
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}<image>"
    image_id = write_processor(tmp_path, llama_tokenizer(), template=template, **NAMES)
    with pytest.raises(ModelError, match="unsafe"):
        load_prompter(tmp_path, image_id).render("why?")


def test_decoding_equals_transformers(tmp_path: Path) -> None:
    tokenizer = llama_tokenizer()
    image_id = write_processor(tmp_path, tokenizer, template=LLAVA_TEMPLATE, **NAMES)
    tokens = [*tokenizer.encode("the circle is red 日", add_special_tokens=False).ids, 2]
    expected = AutoProcessor.from_pretrained(tmp_path).decode(tokens, skip_special_tokens=True)
    assert load_prompter(tmp_path, image_id).decode(tokens) == expected


def test_broken_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="has no tokenizer.json"):
        load_prompter(tmp_path, 3)
    image_id = write_processor(tmp_path, llama_tokenizer(), template=LLAVA_TEMPLATE, **NAMES)
    with pytest.raises(ArtifactError, match="has no token 99999"):
        load_prompter(tmp_path, 99999)
    (tmp_path / "tokenizer_config.json").write_text("[1]")
    with pytest.raises(ArtifactError, match="tokenizer_config.json holds no JSON object"):
        load_prompter(tmp_path, image_id)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ArtifactError, match="tokenizer.json is no tokenizer"):
        load_prompter(tmp_path, image_id)


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_bundled_checkpoint_is_asked_as_transformers_asks_it(question: str) -> None:
    directory = checkpoint_dir()
    image_id = json.loads((directory / "config.json").read_text())["image_token_index"]
    assert load_prompter(directory, image_id).encode(question, 576) == reference(directory, question)
