"""An artifact with an exported `ort` face small enough to compute by hand: the four graphs in ONNX's own text form.

The image is 4 x 4 patches of 7 pixels, scored by brightness. A row is its embedding plus a tenth of its position; layer
l keeps all rows as keys and their doubles as values, and the logits are a hash of the sum over the keys of layer 0, the
halved values of layer 1 and their counts, so that one wrong, missing or surplus cache row changes the answer.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from processors import LLAVA_TEMPLATE, llama_tokenizer, write_processor
from toy_graphs import (
    COUNTED,
    HEADS,
    TOTAL,
    VOCAB,
    WIDTH,
    Floats,
    decode_graph,
    embedding_graph,
    prefill_graph,
    vision_graph,
)

from tokcarve.exporters.device.face import BASELINE, EXPORT, FOLDER, ExportRecord, Side, file_record, seal
from tokcarve.passes.checkpoint import WeightsIdentity
from tokcarve.passes.geometry import Geometry, TextGeometry, VisionGeometry
from tokcarve.recipes.manifest import CheckRecord, Manifest
from tokcarve.recipes.manifest import seal as seal_manifest


@dataclass(frozen=True, kw_only=True)
class Toy:
    """What a reference needs to know of a toy face."""

    table: Floats
    hash: Floats
    batch: int
    tokens: int
    dropped: int
    max_text: int
    max_new: int
    positions: str
    image_token_id: int

    def expect(
        self, pixels: Floats, ids: list[int], new: int, tokens: int | None = None
    ) -> tuple[list[int], list[int]]:
        """(greedy tokens, kept patches) of one prompt, computed row by row; `tokens` = 16 for the unpruned side."""
        tokens = self.tokens if tokens is None else tokens
        dropped = self.dropped if tokens != TOTAL else 0
        scores = pixels.reshape(3, 4, 7, 4, 7).mean(axis=(0, 2, 4)).reshape(-1)
        kept = sorted(np.argsort(-scores, kind="stable")[:tokens].tolist())
        features = iter(scores[kept])
        rows = [np.full(WIDTH, next(features)) if token == self.image_token_id else self.table[token] for token in ids]
        rows = [row + position / 10 for position, row in enumerate(rows)]
        position = len(ids) + (TOTAL - tokens if self.positions == "original" else 0)
        answer: list[int] = []
        while True:
            late = rows[dropped:]
            total = np.sum(rows, axis=0) + np.sum(late, axis=0) + COUNTED * (len(rows) + len(late))
            logits = np.sin(total @ self.hash) @ self.table.T
            answer.append(int(logits.argmax()))
            if len(answer) == new or answer[-1] == 2:
                return answer, kept
            rows.append(self.table[answer[-1]] + position / 10)
            position += 1


def write_toy(
    artifact: Path,
    *,
    batch: int = 1,
    tokens: int = 4,
    dropped: int = 2,
    max_text: int = 24,
    max_new: int = 12,
    positions: str = "renumbered",
) -> Toy:
    """Writes a toy artifact, exported, without base weights; layer 1 drops the first `dropped` rows of the prompt."""
    rng = np.random.default_rng(7)
    artifact.mkdir(parents=True, exist_ok=True)
    image_id = write_processor(
        artifact / "processor", llama_tokenizer(), template=LLAVA_TEMPLATE, bos_token="<s>", eos_token="</s>"
    )
    table = rng.normal(size=(VOCAB, WIDTH)).astype(np.float32)
    hashed = rng.normal(size=(WIDTH, WIDTH)).astype(np.float32)
    toy = Toy(
        table=table, hash=hashed, batch=batch, tokens=tokens, dropped=dropped, max_text=max_text, max_new=max_new,
        positions=positions, image_token_id=image_id,
    )  # fmt: skip
    face = artifact / EXPORT / FOLDER
    face.mkdir(parents=True, exist_ok=True)
    for prefix, (count, cut) in {"": (tokens, dropped), BASELINE: (TOTAL, 0)}.items():
        rows = max_text + count
        onnx.save(vision_graph(batch, count), face / f"{prefix}vision.onnx")
        onnx.save(embedding_graph(batch, count, rows, image_id, table), face / f"{prefix}embedding.onnx")
        onnx.save(prefill_graph(batch, rows, cut, table, hashed), face / f"{prefix}prefill.onnx")
        onnx.save(decode_graph(batch, rows, cut, max_new, table, hashed), face / f"{prefix}decode.onnx")
    manifest = _manifest(toy)
    (artifact / "tokcarve.json").write_text(manifest.model_dump_json())
    (artifact / "recipe.yaml").write_text(f"{{model: toy, method: {{name: uniform}}, budget: {{tokens: {tokens}}}}}")
    (artifact / EXPORT / "export.json").write_text(seal(_record(toy, artifact / EXPORT, manifest.digest)))
    return toy


def _record(toy: Toy, face: Path, digest: str) -> ExportRecord:
    def side(tokens: int, dropped: int) -> Side:
        rows = (toy.max_text + tokens, toy.max_text + tokens - dropped)
        return Side(tokens=tokens, rows=rows, capacities=tuple(count + toy.max_new for count in rows))

    return ExportRecord.model_validate(
        {
            "faces": ("ort",),
            "batch": toy.batch, "total": TOTAL, "max_text": toy.max_text, "max_new": toy.max_new, "opset": 18,
            "dtype": "float32", "positions": toy.positions, "pruned": side(toy.tokens, toy.dropped),
            "baseline": side(TOTAL, 0), "geometry": _geometry(toy.image_token_id),
            "files": {str(path.relative_to(face)): file_record(path) for path in sorted(face.rglob("*.onnx"))},
            "checks": (CheckRecord(name="toy", passed=True, detail="made by hand"),), "not_checked": (),
            "artifact": digest,
        }
    )  # fmt: skip


def _manifest(toy: Toy) -> Manifest:
    none = WeightsIdentity(identity="0" * 64, files=())
    stage = {"site": "vision.layers.1", "total": TOTAL, "keep": toy.tokens, "how": "choose"}
    made = Manifest.model_validate(
        {
            "model": {"name": "toy", "revision": None, "architecture": "Toy", "weights": none},
            "geometry": _geometry(toy.image_token_id), "method": {"name": "uniform", "params": {}},
            "budget": {"asked": {"tokens": toy.tokens}, "tokens": toy.tokens, "total": TOTAL}, "schedule": (stage,),
            "positions": "renumbered", "kv_rows": (toy.tokens, toy.tokens - toy.dropped), "seed": 0, "versions": {},
            "numbers": {
                "tokens_entering": toy.tokens, "tokens_mean": toy.tokens - toy.dropped / 2, "kv_mib": 0.0,
                "kv_mib_unpruned": 0.0,
            },
        }
    )  # fmt: skip
    return seal_manifest(made)


def _geometry(image_token_id: int) -> Geometry:
    return Geometry(
        vision=VisionGeometry(
            kind="clip", image_size=28, patch_size=7, grid=(4, 4), hidden=8, heads=2, head_dim=4, mlp=16, layers=3,
            layers_used=2, prefix=1,
        ),
        text=TextGeometry(
            kind="llama", hidden=WIDTH, heads=HEADS, kv_heads=HEADS, head_dim=4, mlp=16, layers=2, vocab=VOCAB,
            max_positions=256, sliding_window=None,
        ),
        total=TOTAL, image_token_id=image_token_id, eos_token_ids=(2,), pad_token_id=0,
    )  # fmt: skip


def edit_record(artifact: Path, **changes: object) -> None:
    """Changes keys of export.json without sealing it again."""
    path = artifact / EXPORT / "export.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
