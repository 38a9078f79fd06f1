"""The bundled checkpoint is a plain LLaVA-1.5 directory that answers questions about scenes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tokcarve.tiny import CORE, checkpoint_dir, evaluation

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from tokcarve.tiny.check import Checkpoint, accuracy  # noqa: E402
from tokcarve.tiny.model import prompt  # noqa: E402

LIMIT = 12_000_000


@pytest.fixture(scope="module")
def checkpoint() -> Iterator[Checkpoint]:
    if not (checkpoint_dir() / "model.safetensors").exists():
        pytest.skip("no checkpoint in this tree")
    threads = torch.get_num_threads()
    # One thread is the steadier choice for so small a model on a machine that does other work as well.
    torch.set_num_threads(1)
    yield Checkpoint(checkpoint_dir())
    torch.set_num_threads(threads)


def test_directory_is_small(checkpoint: Checkpoint) -> None:
    assert sum(path.stat().st_size for path in checkpoint_dir().iterdir()) <= LIMIT


def test_architecture_is_that_of_llava(checkpoint: Checkpoint) -> None:
    config: Any = checkpoint.model.config
    assert config.model_type == "llava" and config.vision_config.model_type == "clip_vision_model"
    assert config.text_config.model_type == "llama"
    assert config.vision_feature_layer == -2 and config.vision_feature_select_strategy == "default"
    assert config.vision_config.hidden_act == "quick_gelu" and config.projector_hidden_act == "gelu"
    assert config.image_seq_length == 576


def test_processor_gives_576_image_tokens(checkpoint: Checkpoint) -> None:
    sample = next(evaluation(1))
    assert checkpoint.prompt(sample.question) == prompt(sample.question)
    inputs = checkpoint.inputs(sample.image, [sample.question])
    assert int((inputs["input_ids"] == checkpoint.image_token).sum()) == 576
    assert tuple(inputs["pixel_values"].shape) == (1, 3, 336, 336)
    assert int(inputs["input_ids"][0, 0]) == checkpoint.model.config.text_config.bos_token_id


def test_any_text_can_be_encoded(checkpoint: Checkpoint) -> None:
    text = "Größe? 猫 \t{}"
    ids = checkpoint.processor.tokenizer.encode(text, add_special_tokens=False)
    assert checkpoint.processor.tokenizer.decode(ids) == text


def test_answers_are_better_than_chance(checkpoint: Checkpoint) -> None:
    samples = [sample for sample in evaluation(24) if sample.family in CORE]
    figures = accuracy(checkpoint, samples)
    best = Counter(sample.family for sample in samples)
    assert len(best) == len(CORE)
    assert figures["core"] > 0.6
