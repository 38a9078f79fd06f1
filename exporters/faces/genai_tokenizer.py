"""Whether onnxruntime-genai, which has tokenizers of its own, reads a checkpoint's tokenizer as it is meant."""

import json
import tempfile
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from tokcarve.exporters.device.stock_genai import version
from tokcarve.exporters.faces.genai_files import asking, marks, write_tokenizer
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.inputs.prompt import Prompter

__all__ = ["read_otherwise"]

_TRIED = ("what colour is the circle?", "How many are there, 3 or 12? Say it in one word.", "Où est-ce ?\nÀ gauche…")


def read_otherwise(own: Path, prompter: Prompter, geometry: Geometry) -> str | None:
    """How the runtime reads questions otherwise than `prompter`, whose files are in `own`; None where it does not, or
    where it is not installed."""
    installed = version()
    if installed is None:
        return None
    import onnxruntime_genai as genai

    prompt, marked = asking(prompter), marks(prompter, geometry)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_tokenizer(folder, own, prompter, geometry)
        _write_nothing(folder)
        try:
            tokenizer: Any = genai.Tokenizer(genai.Model(made))
            for question in _TRIED:
                found = [int(one) for one in tokenizer.encode(prompt.about(question))]
                if found != marked.around(prompter.encode(question, 1), geometry.image_token_id):
                    return f"onnxruntime-genai {installed} reads {question!r} as other tokens than this checkpoint does"
        except Exception as error:  # it raises its own kinds
            why = " ".join(str(error).split())[:200]
            return f"onnxruntime-genai {installed} cannot load this checkpoint's tokenizer ({why})"
    return None


def _write_nothing(folder: Path) -> None:
    """A model that does nothing: the runtime has no tokenizer without one."""
    ends = [helper.make_tensor_value_info(name, TensorProto.INT64, [1, "rows"]) for name in ("input_ids", "logits")]
    graph = helper.make_graph([helper.make_node("Identity", ["input_ids"], ["logits"])], "nothing", ends[:1], ends[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), folder / "no.onnx")
    sizes = ("head_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers")
    decoder = {"filename": "no.onnx", "inputs": {"input_ids": "input_ids"}, "outputs": {"logits": "logits"}}
    model = {"type": "llama", "context_length": 8, "vocab_size": 8, "eos_token_id": 0, "pad_token_id": 0}
    config = {"model": {**model, "decoder": {**decoder, **dict.fromkeys(sizes, 1)}}, "search": {"max_length": 8}}
    (folder / "genai_config.json").write_text(json.dumps(config))
