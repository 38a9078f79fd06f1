"""The four graphs of the toy face, in ONNX's own text form; `toy_face` says what they compute."""

import re

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.parser import parse_model

WIDTH, HEADS, VOCAB, TOTAL = 8, 2, 430, 16
COUNTED = 0.05  # what every attended row adds beside itself
Floats = NDArray[np.float32]


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


def vision_graph(batch: int, tokens: int) -> onnx.ModelProto:
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


def embedding_graph(batch: int, tokens: int, rows: int, image_id: int, table: Floats) -> onnx.ModelProto:
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


def prefill_graph(batch: int, rows: int, dropped: int, table: Floats, hashed: Floats) -> onnx.ModelProto:
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


def decode_graph(batch: int, rows: int, dropped: int, new: int, table: Floats, hashed: Floats) -> onnx.ModelProto:
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
