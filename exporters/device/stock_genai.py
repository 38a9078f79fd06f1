"""The stock onnxruntime-genai on a folder of graphs and configuration, as anybody would run it."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokcarve.exporters.device.growing import Heard

__all__ = ["StockGenai", "version"]


def version() -> str | None:
    """The version of onnxruntime-genai, or None where it is not installed."""
    try:
        import onnxruntime_genai
    except ImportError:
        return None
    return str(onnxruntime_genai.__version__)


class StockGenai:
    """A model that onnxruntime-genai loaded from `folder`; what fails in it raises its own RuntimeError."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime_genai

        self._genai: Any = onnxruntime_genai
        self._model = self._genai.Model(str(folder))
        self._processor = self._model.create_multimodal_processor()
        self._tokenizer = self._genai.Tokenizer(self._model)

    def prompt(self, messages: str) -> str:
        """The text that its tokenizer makes of messages (JSON) by the chat template in the folder."""
        return str(self._tokenizer.apply_chat_template(messages, add_generation_prompt=True))

    def answer(self, image: Path | None, text: str, new: int) -> Heard:
        """Up to `new` greedy tokens behind a prompt; a stop token is the last of them."""
        images = None if image is None else self._genai.Images.open(str(image))
        inputs = self._processor(text, images=images)
        ids = np.asarray(inputs["input_ids"].as_numpy())[0].astype(np.int64)
        parameters = self._genai.GeneratorParams(self._model)
        parameters.set_search_options(max_length=len(ids) + new, do_sample=False)
        generator = self._genai.Generator(self._model, parameters)
        generator.set_inputs(inputs)
        logits = np.array(generator.get_logits(), np.float32).reshape(-1, generator.get_logits().shape[-1])[-1]
        tokens = list(_tokens(generator, new))
        return Heard(ids=ids, logits=logits, tokens=np.array(tokens, np.int64))


def _tokens(generator: Any, new: int) -> Iterator[int]:
    for _ in range(new):
        if generator.is_done():
            return
        generator.generate_next_token()
        found: Sequence[int] = generator.get_next_tokens()
        yield int(found[0])
