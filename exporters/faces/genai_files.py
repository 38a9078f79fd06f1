"""What onnxruntime-genai reads beside graphs: its configuration, a tokenizer that owns three tokens more, a chat
template, and how to decode an image.

The runtime writes its own tokens around an image. They get ids that no other token has, and the embedding graph knows
what they stand for: places of visual tokens, and rows that are not there. So a prompt is, token for token, what the
checkpoint's own processor makes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokcarve.exporters.device.growing import EMBEDDING, TEXT, VISION
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.inputs.files import read_object
from tokcarve.passes.inputs.prompt import Prompter

__all__ = ["END", "IMAGE", "START", "Asking", "Marks", "asking", "marks", "write_genai_files", "write_tokenizer"]

START, IMAGE, END = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"
"""What the runtime writes: the first, as many of the second as there are visual tokens, the third."""
_PROCESSOR = "genai_processor.json"
_QUESTION = "\u241equestion\u241e"  # stands for a question in a template, and occurs in none


@dataclass(frozen=True, kw_only=True)
class Marks:
    """Ids of the tokens that the runtime writes."""

    start: int
    image: int
    end: int

    def around(self, ids: Sequence[int], image_token_id: int) -> list[int]:
        """Ids of a prompt with visual tokens as the runtime has them."""
        first = list(ids).index(image_token_id)
        count = list(ids).count(image_token_id)
        return [*ids[:first], self.start, *[self.image] * count, self.end, *ids[first + count :]]


def marks(prompter: Prompter, geometry: Geometry) -> Marks:
    """Ids that the checkpoint's tokenizer has for these tokens, or else rows of the embedding table that no token has,
    or else ids behind all others."""
    used = set(prompter.tokenizer.get_vocab(with_added_tokens=True).values())
    last = max(geometry.text.vocab, max(used) + 1)
    free = [one for one in range(geometry.text.vocab) if one not in used][-3:]
    spare = iter(free if len(free) == 3 else range(last, last + 3))
    known = [prompter.tokenizer.token_to_id(token) for token in (START, IMAGE, END)]
    start, image, end = (next(spare) if one is None else int(one) for one in known)
    return Marks(start=start, image=image, end=end)


@dataclass(frozen=True, kw_only=True)
class Asking:
    """Text in front of a question and behind it, for the runtime."""

    before: str
    behind: str

    def about(self, question: str) -> str:
        """The prompt of one question about one image."""
        return f"{self.before}{question}{self.behind}"


def asking(prompter: Prompter) -> Asking:
    """The checkpoint's template with the runtime's tokens in place of the image's, and the first token written out that
    the checkpoint's tokenizer adds by itself."""
    text = prompter.render(_QUESTION).replace(prompter.image_token, START + IMAGE + END)
    before, _, behind = text.partition(_QUESTION)
    bos = prompter.special.get("bos_token")
    first = prompter.encode("a", 1)[0]
    if bos is not None and prompter.tokenizer.token_to_id(bos) == first and not before.startswith(bos):
        before = bos + before
    return Asking(before=before, behind=behind)


def write_genai_files(
    folder: Path, own: Path, prompter: Prompter, geometry: Geometry, *, tokens: int, width: int
) -> None:
    """genai_config.json, the tokenizer's files and the image processor's in `folder`, from the processor files in `own`
    that made `prompter`; `tokens` per image, embeddings of `width` columns."""
    bos = prompter.special.get("bos_token")
    first = None if bos is None else prompter.tokenizer.token_to_id(bos)
    _write(folder / "genai_config.json", _config(geometry, first, tokens=tokens, width=width))
    _write(folder / _PROCESSOR, _decoding())
    write_tokenizer(folder, own, prompter, geometry)


def write_tokenizer(folder: Path, own: Path, prompter: Prompter, geometry: Geometry) -> None:
    """tokenizer.json, with the runtime's tokens and those that the configuration lays over the file, and
    tokenizer_config.json, with a chat template for one question about an image."""
    tokenizer = json.loads(prompter.tokenizer.to_str())
    _write(folder / "tokenizer.json", _extended(tokenizer, marks(prompter, geometry)))
    settings, prompt = read_object(own / "tokenizer_config.json"), asking(prompter)
    template = f"{{{{ {json.dumps(prompt.before)} + messages[-1]['content'] + {json.dumps(prompt.behind)} }}}}"
    _write(folder / "tokenizer_config.json", {**settings, "chat_template": template})


def _config(geometry: Geometry, bos: int | None, *, tokens: int, width: int) -> dict[str, Any]:
    text = geometry.text
    longest = min(text.max_positions, text.sliding_window or text.max_positions)
    names = {"past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"}
    made = {"present_key_names": "present.%d.key", "present_value_names": "present.%d.value"}
    embeds = {"inputs_embeds": "inputs_embeds"}
    return {
        "model": {
            "type": "videochat_flash_qwen",
            "context_length": longest,
            "vocab_size": text.vocab,
            **({"bos_token_id": bos} if bos is not None else {}),
            "eos_token_id": list(geometry.eos_token_ids),
            "pad_token_id": geometry.pad_token_id,
            "vision": {
                "filename": VISION,
                "config_filename": _PROCESSOR,
                "num_visual_tokens": tokens,
                "inputs": {"pixel_values": "pixel_values"},
                "outputs": {"image_features": "image_features"},
            },
            "embedding": {
                "filename": EMBEDDING,
                "inputs": {"input_ids": "input_ids", "image_features": "image_features"},
                "outputs": embeds,
            },
            "decoder": {
                "filename": TEXT,
                "session_options": {"provider_options": []},
                "head_size": text.head_dim,
                "hidden_size": width,
                "num_attention_heads": text.heads,
                "num_key_value_heads": text.kv_heads,
                "num_hidden_layers": text.layers,
                "inputs": {**embeds, "attention_mask": "attention_mask", "position_ids": "position_ids", **names},
                "outputs": {"logits": "logits", **made},
            },
        },
        "search": {"max_length": longest, "do_sample": False, "num_beams": 1, "past_present_share_buffer": False},
    }


def _decoding() -> dict[str, Any]:
    """Pixels as they are: the vision graph prepares them."""
    steps = [
        ("decode_image", "DecodeImage", {"color_space": "RGB"}),
        ("as_floats", "Rescale", {"rescale_factor": 1.0}),
        ("channels_first", "Permute3D", {"dims": [2, 0, 1]}),
    ]
    transforms = [{"operation": {"name": name, "type": kind, "attrs": attrs}} for name, kind, attrs in steps]
    return {"processor": {"name": "image_processing", "transforms": transforms}}


def _extended(tokenizer: Mapping[str, Any], marked: Marks) -> dict[str, Any]:
    """The tokenizer with the runtime's tokens, where it does not have them."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = list(tokenizer.get("added_tokens", []))
    there = {one["content"] for one in added}
    new = [(marked.start, START), (marked.image, IMAGE), (marked.end, END)]
    added += [{"id": one, "content": text, **flags} for one, text in new if text not in there]
    return {**tokenizer, "added_tokens": sorted(added, key=lambda one: int(one["id"]))}


def _write(path: Path, fields: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
