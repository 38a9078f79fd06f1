"""The graphs of an `hf` face, run as its runtimes run them: prompts padded on the left, visual tokens put where image
tokens stand, one growing cache."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from tokcarve.exporters.device.compare import Asked, Check, Said, check_said
from tokcarve.exporters.device.face import EXPORT, FOLDER, ExportRecord
from tokcarve.exporters.device.pipeline import Ids, greedy
from tokcarve.exporters.device.session import Array, start

__all__ = ["EMBEDDING", "TEXT", "VISION", "Merging", "check_merging"]

VISION, EMBEDDING, TEXT = "vision_encoder.onnx", "embed_tokens.onnx", "decoder_model_merged.onnx"
"""The names under which transformers.js looks for the graphs of a LLaVA."""


def check_merging(
    artifact: Path, record: ExportRecord, samples: Sequence[Asked], expected: Sequence[Said]
) -> list[Check]:
    """The graphs on golden samples, of which there is a multiple of the exported batch, against what torch said."""
    runs, made, batch = Merging(artifact, record), list[Said](), record.batch
    for first in range(0, len(samples), batch):
        made += runs.answer(samples[first : first + batch], len(expected[0].tokens))
    if len(made[0].kept) != len(expected[0].kept):
        # the language model drops more, and does not say what
        made = [replace(one, kept=other.kept) for one, other in zip(made, expected, strict=True)]
        return check_said(made, expected, side="hf", dtype=record.dtype)[1:]
    return check_said(made, expected, side="hf", dtype=record.dtype)


class Merging:
    """The three graphs of `artifact`, loaded on the CPU; ExportError if ONNX Runtime cannot."""

    def __init__(self, artifact: Path, record: ExportRecord) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        folder, self.record = artifact / EXPORT / FOLDER, record
        self._vision, self._table, self._text = (
            start(folder / name, options, ("CPUExecutionProvider",)) for name in (VISION, EMBEDDING, TEXT)
        )

    def answer(self, samples: Sequence[Asked], new: int) -> list[Said]:
        """What the graphs make of one exported batch; every sample keeps generating past a stop token."""
        pixels = np.concatenate([sample.pixels for sample in samples])
        seen = _run(self._vision, {"pixel_values": pixels})
        ids, mask = self._prompts(samples, seen["image_features"].shape[1])
        rows = _run(self._table, {"input_ids": ids})["inputs_embeds"].copy()
        rows[ids == self.record.geometry.image_token_id] = seen["image_features"].reshape(-1, rows.shape[2])
        steps = list(self._steps(rows, mask, new))
        tokens = np.concatenate([greedy(logits) for logits in steps], axis=1)
        return [
            Said(
                kept=seen["kept_indices"][i],
                features=seen["image_features"][i, :, : self.record.geometry.text.hidden],
                logits=steps[0][i, 0],
                tokens=tokens[i],
            )
            for i in range(len(samples))
        ]

    def _prompts(self, samples: Sequence[Asked], tokens: int) -> tuple[Ids, Ids]:
        geometry = self.record.geometry
        prompts = [[*one.before, *[geometry.image_token_id] * tokens, *one.after] for one in samples]
        longest = max(map(len, prompts))
        ids = np.full((len(prompts), longest), geometry.pad_token_id, np.int64)
        mask = np.zeros_like(ids)
        for i, prompt in enumerate(prompts):
            ids[i, longest - len(prompt) :], mask[i, longest - len(prompt) :] = prompt, 1
        return ids, mask

    def _steps(self, rows: Array, mask: Ids, new: int) -> Iterator[Array]:
        """Logits [batch, 1, vocab] of the prompt's last row, then of every greedy token but the last."""
        text = self.record.geometry.text
        empty: NDArray[Any] = np.zeros((len(mask), text.kv_heads, 0, text.head_dim), rows.dtype)
        cache = {f"past_key_values.{i}.{part}": empty for i in range(text.layers) for part in ("key", "value")}
        for step in range(new):
            positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)[:, -rows.shape[1] :]
            made = _run(self._text, {"inputs_embeds": rows, "attention_mask": mask, "position_ids": positions, **cache})
            yield made["logits"][:, -1:]
            if step + 1 < new:
                cache = {name: made[name.replace("past_key_values", "present")] for name in cache}
                rows = _run(self._table, {"input_ids": greedy(made["logits"][:, -1:])})["inputs_embeds"]
                mask = np.concatenate([mask, np.ones_like(mask[:, :1])], axis=1)


def _run(session: Any, feeds: dict[str, Array]) -> dict[str, Array]:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))
