"""What Hugging Face runtimes read beside graphs: the model's configuration and processor, patched so that the processor
writes as many image tokens into a prompt as are left of them.

Two runtimes count: transformers takes one off where the strategy is "default", transformers.js never does. So the
strategy is "full" and `num_additional_image_tokens` the whole difference, a negative number.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokcarve.exporters.faces.kind import Work
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.inputs.files import read_object

__all__ = ["write_hf_files"]

_CONFIG, _GENERATION = "config.json", "generation_config.json"
_PROCESSOR, _IMAGES = "processor_config.json", "preprocessor_config.json"
_TOKENIZER = "tokenizer_config.json"


def write_hf_files(work: Work, tokens: int) -> None:
    """config.json, generation_config.json, tokenizer and processor files in the export, for `tokens` per image."""
    place, base, processor = work.directory, work.source.artifact.open_base().path, work.source.artifact.processor
    geometry = work.draft.geometry
    _write(place / _CONFIG, _model(read_object(base / _CONFIG), tokens, work.draft.dtype))
    if (base / _GENERATION).is_file():
        shutil.copyfile(base / _GENERATION, place / _GENERATION)
    for path in sorted(processor.iterdir()):
        if path.name not in {_PROCESSOR, _IMAGES, _TOKENIZER}:
            shutil.copyfile(path, place / path.name)
    _write(place / _TOKENIZER, _templated(processor))
    settings = read_object(processor / _PROCESSOR)
    images = {**settings.pop("image_processor", {}), **read_object(processor / _IMAGES)}
    text = _image_token(processor, geometry.image_token_id)
    _write(place / _PROCESSOR, _counted(settings, geometry, tokens, text))
    # transformers.js looks for the image processor in a file of its own, transformers takes it from there as well
    _write(place / _IMAGES, {**images, "processor_class": "LlavaProcessor"})


def _model(config: Mapping[str, Any], tokens: int, dtype: str) -> dict[str, Any]:
    kept = {name: value for name, value in config.items() if name not in {"torch_dtype", "quantization_config"}}
    # transformers.js would take a quantised file by default where it runs on a CPU
    runtime = {"dtype": {"float32": "fp32", "float16": "fp16"}.get(dtype, "fp32"), "use_external_data_format": False}
    return kept | {"image_seq_length": tokens, "dtype": dtype, "transformers.js_config": runtime}


def _templated(processor: Path) -> dict[str, Any]:
    """The tokenizer's configuration with the chat template in it, where transformers.js looks for that of a LLaVA."""
    config, file = read_object(processor / _TOKENIZER), processor / "chat_template.jinja"
    legacy = read_object(processor / "chat_template.json").get("chat_template")
    template = file.read_text(encoding="utf-8") if file.is_file() else legacy
    return config if template is None else config | {"chat_template": template}


def _counted(settings: Mapping[str, Any], geometry: Geometry, tokens: int, image_token: str) -> dict[str, Any]:
    patches = (geometry.vision.image_size // geometry.vision.patch_size) ** 2
    return {
        **settings,
        "processor_class": "LlavaProcessor",
        "image_token": image_token,
        "patch_size": geometry.vision.patch_size,
        "num_additional_image_tokens": tokens - patches,
        "vision_feature_select_strategy": "full",
    }


def _image_token(processor: Path, token_id: int) -> str:
    added = read_object(processor / "tokenizer.json").get("added_tokens", [])
    return next(str(one["content"]) for one in added if one["id"] == token_id)


def _write(path: Path, fields: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
