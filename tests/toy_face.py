"""An artifact with an exported `ort` face small enough to compute by hand: the four graphs in ONNX's own text form.

The image is 4 x 4 patches of 7 pixels, scored by brightness. A row is its embedding plus a tenth of its position; layer
l keeps all rows as keys and their doubles as values, and the logits are a hash of the sum over the keys of layer 0, the
halved values of layer 1 and their counts, so that one wrong, missing or surplus cache row changes the answer.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.parser import parse_model
from processors import LLAVA_TEMPLATE, llama_tokenizer, write_processor

from tokcarve.exporters.device.face import BASELINE, FACE_DIRECTORY, OrtFace, Side, file_record, seal
from tokcarve.passes.checkpoint import WeightsIdentity
from tokcarve.passes.geometry import Geometry, TextGeometry, VisionGeometry
from tokcarve.recipes.manifest import CheckRecord, Manifest
from tokcarve.recipes.manifest import seal as seal_manifest

WIDTH, HEADS, VOCAB, TOTAL = 8, 2, 430, 16
COUNTED = 0.05  # what every attended row adds beside itself
Floats = NDArray[np.float32]


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


def _model(text: str, weights: dict[str, NDArray[np.generic]]) -> onnx.ModelProto:
    dotted = re.sub(r"(present|past_key_values)\.(\d)\.", r"\1__\2__", text)  # the text form knows no dots in names
    model = parse_model(f'<ir_version: 8, opset_import: ["": 18]>\n{dotted}')
    for node in model.graph.node:
        node.input[:] = [name.replace("__", ".") for name in node.input]
        node.output[:] = [name.replace("__", ".") for name in node.output]
    for value in (*model.graph.input, *model.graph.output):
        value.name = value.name.replace("__", ".")
    for name, value in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    for node in model.graph.node:
        selects = node.output[0].startswith("select") or node.output[0] == "kept_indices"
        node.name = f"{'tokcarve_select' if selects else 'own'}_{node.output[0]}"
    onnx.checker.check_model(model)
    return model


def _vision(batch: int, tokens: int) -> onnx.ModelProto:
    text = f"""vision (float[{batch},3,28,28] pixel_values)
        => (float[{batch},{tokens},{WIDTH}] image_features, int64[{batch},{tokens}] kept_indices) {{
        pooled = AveragePool<kernel_shape=[7,7], strides=[7,7]>(pixel_values)
        grey = ReduceMean<keepdims=0>(pooled, one)
        scores = Reshape(grey, flat)
        select_best, select_index = TopK<axis=1, largest=1>(scores, tokens)
        select_lowest, select_order = TopK<axis=1, largest=0>(select_index, tokens)
        kept_indices = Identity(select_lowest)
        select_taken = GatherElements<axis=1>(scores, kept_indices)
        column = Unsqueeze(select_taken, last)
        image_features = Expand(column, wide)
    }}"""
    return _model(
        text,
        {
            "one": np.array([1]), "last": np.array([-1]), "flat": np.array([batch, TOTAL]),
            "tokens": np.array([tokens]), "wide": np.array([batch, tokens, WIDTH]),
        },
    )  # fmt: skip


def _embedding(batch: int, tokens: int, rows: int, image_id: int, table: Floats) -> onnx.ModelProto:
    text = f"""embedding (int64[{batch},{rows}] input_ids, float[{batch},{tokens},{WIDTH}] image_features)
        => (float[{batch},{rows},{WIDTH}] inputs_embeds, int64[{batch},{rows}] position_ids) {{
        words = Gather(table, input_ids)
        here = Equal(input_ids, image_id)
        ones = Cast<to=7>(here)
        seen = CumSum(ones, axis)
        before = Sub(seen, one)
        slot = Max(before, zero)
        slot3 = Unsqueeze(slot, last)
        slots = Expand(slot3, wide)
        picked = GatherElements<axis=1>(image_features, slots)
        here3 = Unsqueeze(here, last)
        inputs_embeds = Where(here3, picked, words)
        position_ids = Expand(count, rows)
    }}"""
    return _model(
        text,
        {
            "table": table, "image_id": np.array(image_id), "axis": np.array(1), "one": np.array(1),
            "zero": np.array(0), "last": np.array([-1]), "wide": np.array([batch, rows, WIDTH]),
            "count": np.arange(rows)[None], "rows": np.array([batch, rows]),
        },
    )  # fmt: skip


def _prefill(batch: int, rows: int, dropped: int, table: Floats, hashed: Floats) -> onnx.ModelProto:
    depth = WIDTH // HEADS
    presents = ", ".join(
        f"float[{batch},{HEADS},{count},{depth}] present.{layer}.{kind}"
        for layer, count in enumerate((rows, rows - dropped))
        for kind in ("key", "value")
    )
    text = f"""prefill (float[{batch},{rows},{WIDTH}] inputs_embeds, int64[{batch},{rows}] position_ids,
        int64[{batch}] prompt_lengths) => (float[{batch},1,{VOCAB}] logits, {presents}) {{
        place = Cast<to=1>(position_ids)
        place3 = Unsqueeze(place, last)
        shift = Mul(place3, tenth)
        x = Add(inputs_embeds, shift)
        lengths = Unsqueeze(prompt_lengths, last)
        valid = Less(count, lengths)
        valid1 = Cast<to=1>(valid)
        valid3 = Unsqueeze(valid1, last)
        counted = Add(x, each)
        real = Mul(counted, valid3)
        split = Reshape(x, heads)
        present.0.key = Transpose<perm=[0,2,1,3]>(split)
        present.0.value = Mul(present.0.key, two)
        later = Slice(split, dropped, end, rows_axis)
        present.1.key = Transpose<perm=[0,2,1,3]>(later)
        present.1.value = Mul(present.1.key, two)
        sum0 = ReduceSum<keepdims=1>(real, rows_axis)
        real1 = Slice(real, dropped, end, rows_axis)
        sum1 = ReduceSum<keepdims=1>(real1, rows_axis)
        total = Add(sum0, sum1)
        mixed = MatMul(total, hash)
        waves = Sin(mixed)
        logits = MatMul(waves, words_out)
    }}"""
    return _model(
        text,
        {
            "tenth": np.array(0.1, np.float32), "two": np.array(2, np.float32), "last": np.array([-1]),
            "each": np.array(COUNTED, np.float32), "count": np.arange(rows)[None], "end": np.array([rows]),
            "heads": np.array([batch, rows, HEADS, depth]), "dropped": np.array([dropped]),
            "rows_axis": np.array([1]), "hash": hashed, "words_out": np.ascontiguousarray(table.T),
        },
    )  # fmt: skip


def _decode(batch: int, rows: int, dropped: int, new: int, table: Floats, hashed: Floats) -> onnx.ModelProto:
    depth, counts = WIDTH // HEADS, (rows, rows - dropped)
    names = [(layer, kind) for layer in (0, 1) for kind in ("key", "value")]
    shape = {layer: f"float[{batch},{HEADS},{count + new},{depth}]" for layer, count in enumerate(counts)}
    pasts = ", ".join(f"{shape[layer]} past_key_values.{layer}.{kind}" for layer, kind in names)
    presents = ", ".join(f"float[{batch},{HEADS},1,{depth}] present.{layer}.{kind}" for layer, kind in names)
    layers = "\n".join(
        f"""limit{i} = Sub(lengths, cut{i})
        prompt{i} = Less(slots{i}, limit{i})
        from{i} = GreaterOrEqual(slots{i}, first{i})
        until{i} = Add(first{i}, step)
        before{i} = Less(slots{i}, until{i})
        written{i} = And(from{i}, before{i})
        alive{i} = Or(prompt{i}, written{i})
        weight{i} = Cast<to=1>(alive{i})
        weight4{i} = Unsqueeze(weight{i}, around)
        masked{i} = Mul(past_key_values.{i}.{kind}, weight4{i})
        summed{i} = ReduceSum<keepdims=1>(masked{i}, slot_axis)
        rows{i} = Reshape(summed{i}, row)
        slots_alive{i} = ReduceSum<keepdims=1>(weight{i}, last)
        share{i} = Mul(slots_alive{i}, {"each" if i == 0 else "twice"})
        share3{i} = Unsqueeze(share{i}, last)
        sum{i} = Add(rows{i}, share3{i})"""
        for i, kind in enumerate(("key", "value"))
    )
    text = f"""decode (int64[{batch},1] input_ids, int64[{batch},1] position_ids, int64[{batch}] prompt_lengths,
        int64[1] step, {pasts}) => (float[{batch},1,{VOCAB}] logits, {presents}) {{
        words = Gather(table, input_ids)
        place = Cast<to=1>(position_ids)
        place3 = Unsqueeze(place, last)
        shift = Mul(place3, tenth)
        x = Add(words, shift)
        split = Reshape(x, heads)
        present.0.key = Transpose<perm=[0,2,1,3]>(split)
        present.0.value = Mul(present.0.key, two)
        present.1.key = Identity(present.0.key)
        present.1.value = Identity(present.0.value)
        lengths = Unsqueeze(prompt_lengths, last)
        {layers}
        half1 = Mul(sum1, half)
        old = Add(sum0, half1)
        own = Add(x, each)
        fresh = Mul(own, two)
        total = Add(old, fresh)
        mixed = MatMul(total, hash)
        waves = Sin(mixed)
        logits = MatMul(waves, words_out)
    }}"""
    weights = {
        "table": table, "hash": hashed, "words_out": np.ascontiguousarray(table.T),
        "tenth": np.array(0.1, np.float32), "two": np.array(2, np.float32),
        "half": np.array(0.5, np.float32), "each": np.array(COUNTED, np.float32),
        "twice": np.array(2 * COUNTED, np.float32), "last": np.array([-1]), "heads": np.array([batch, 1, HEADS, depth]),
        "row": np.array([batch, 1, WIDTH]), "around": np.array([1, 3]), "slot_axis": np.array([2]),
    }  # fmt: skip
    for layer, count in enumerate(counts):
        weights[f"slots{layer}"] = np.arange(count + new)[None]
        weights[f"cut{layer}"] = np.array(rows - count)
        weights[f"first{layer}"] = np.array(count)
    return _model(text, weights)


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
    face = artifact / FACE_DIRECTORY
    face.mkdir(parents=True, exist_ok=True)
    for prefix, (count, cut) in {"": (tokens, dropped), BASELINE: (TOTAL, 0)}.items():
        rows = max_text + count
        onnx.save(_vision(batch, count), face / f"{prefix}vision.onnx")
        onnx.save(_embedding(batch, count, rows, image_id, table), face / f"{prefix}embedding.onnx")
        onnx.save(_prefill(batch, rows, cut, table, hashed), face / f"{prefix}prefill.onnx")
        onnx.save(_decode(batch, rows, cut, max_new, table, hashed), face / f"{prefix}decode.onnx")
    manifest = _manifest(toy)
    (artifact / "tokcarve.json").write_text(manifest.model_dump_json())
    (artifact / "recipe.yaml").write_text(f"{{model: toy, method: {{name: uniform}}, budget: {{tokens: {tokens}}}}}")
    (face / "export.json").write_text(seal(_record(toy, face, manifest.digest)))
    return toy


def _record(toy: Toy, face: Path, digest: str) -> OrtFace:
    def side(tokens: int, dropped: int) -> Side:
        rows = (toy.max_text + tokens, toy.max_text + tokens - dropped)
        return Side(tokens=tokens, rows=rows, capacities=tuple(count + toy.max_new for count in rows))

    return OrtFace.model_validate(
        {
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
            "model": {"name": "toy", "path": "/toy", "revision": None, "architecture": "Toy", "weights": none},
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
    path = artifact / FACE_DIRECTORY / "export.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
