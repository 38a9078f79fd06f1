"""The proof of an export: its files against the ONNX rules, and ONNX Runtime against torch, with a test of power."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokcarve.exporters.device.pipeline import Pipeline, greedy
from tokcarve.exporters.device.session import Graph
from tokcarve.exporters.golden import Golden, Reference
from tokcarve.passes.asking import Question
from tokcarve.passes.router import Router

__all__ = ["TOLERANCES", "Check", "check_graph", "check_numbers", "check_power", "check_router", "check_weights"]

TOLERANCES = {"float32": 1e-4, "float16": 2e-2}
"""Largest difference from torch, as a share of the largest value compared (but of at least 1), by dtype."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One comparison: `value` is what was measured and `tolerance` what it may be, where there are such numbers."""

    name: str
    passed: bool
    detail: str
    value: float | None = None
    tolerance: float | None = None


def check_graph(path: Path) -> Check:
    """The full ONNX check, strict shape inference, standard operators only, and every dimension a constant."""
    name = f"{path.name}: valid ONNX, static"
    try:
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False), strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return Check(name=name, passed=False, detail=" ".join(str(error).split()))
    graph = model.graph
    open_ended = [v.name for v in (*graph.input, *graph.output, *graph.value_info) if not _is_static(v)]
    if open_ended:
        return Check(name=name, passed=False, detail=f"{open_ended[0]} and {len(open_ended) - 1} more are not static")
    foreign = sorted({node.domain for node in graph.node} - {"", "ai.onnx"})
    if foreign or model.functions:
        return Check(name=name, passed=False, detail=f"it needs {', '.join(foreign) or 'functions'}")
    return Check(name=name, passed=True, detail=f"{len(graph.node)} nodes, opset {model.opset_import[0].version}")


def _is_static(value: onnx.ValueInfoProto) -> bool:
    tensor = value.type.tensor_type
    return tensor.HasField("shape") and all(d.HasField("dim_value") and d.dim_value > 0 for d in tensor.shape.dim)


def check_weights(paths: Sequence[Path], named: Mapping[str, Tensor]) -> Check:
    """Every weight that the graphs read, byte for byte against the model's own tensor of that name.

    A name that ends in `.T` holds the transpose. Large tensors that are no weights (a method's constants) are counted.
    """
    compared, constants = 0, set()
    for path in paths:
        for name, found in _external(path):
            weight = named.get(name.removesuffix(".T"))
            if weight is None:
                constants.add(name)
                continue
            expected = (weight.t() if name.endswith(".T") else weight).detach().numpy()
            if found.shape != expected.shape or not np.array_equal(found, expected):
                return Check(name="weights", passed=False, detail=f"{name!r} of {path.name} is not the checkpoint's")
            compared += 1
    detail = f"{compared} tensors equal the checkpoint's, {len(constants)} constants are not weights"
    return Check(name="weights", passed=compared > 0, detail=detail)


def _external(path: Path) -> Iterator[tuple[str, NDArray[np.generic]]]:
    for value in ir.load(path).graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            yield str(value.name), value.const_value.numpy()


@dataclass(frozen=True)
class _Answer:
    kept: NDArray[np.int64]
    features: NDArray[np.floating]
    logits: NDArray[np.floating]
    tokens: list[int]
    given: dict[str, NDArray[np.floating]]


def _answer(pipeline: Pipeline, samples: Sequence[Question], new: int, given: Sequence[str]) -> list[_Answer]:
    """One exported batch through all four graphs; every sample keeps generating past a stop token."""
    record = pipeline.record
    geometry, tokens = record.geometry, pipeline.side.tokens
    prompts = [sample.ids(geometry.image_token_id, tokens) for sample in samples]
    ids = np.full((len(samples), record.max_text + tokens), geometry.pad_token_id, np.int64)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = prompt
    lengths = np.array([len(prompt) for prompt in prompts], np.int64)
    seen = pipeline.vision(torch.cat([sample.pixel_values for sample in samples]).numpy(), ids, lengths)
    state = {name: torch.cat([s.state[name] for s in samples]).numpy() for name in samples[0].state}
    first = pipeline.prefill({**pipeline.embed(ids, seen), **state}, lengths)
    cache, latest = pipeline.cache(first), greedy(first["logits"])
    said, made = [latest], [first]
    for step in range(new - 1):
        made.append(pipeline.step(latest, lengths, step, cache))
        latest = greedy(made[-1]["logits"])
        said.append(latest)
    told = {name: np.stack([one[name] for one in made], axis=1) for name in given}
    columns, kept = np.concatenate(said, axis=1), pipeline.kept(seen, first)
    logits, features = first["logits"], seen["image_features"]
    return [
        _Answer(kept[i], features[i], logits[i, 0], columns[i].tolist(), {name: one[i] for name, one in told.items()})
        for i in range(len(samples))
    ]


def check_numbers(
    pipeline: Pipeline, samples: Sequence[Question], expected: Sequence[Reference], *, side: str, dtype: str = "float32"
) -> list[Check]:
    """ONNX Runtime against torch on the samples: kept sets, image features, logits of the last row, greedy tokens.

    The number of samples is a multiple of the exported batch. `side` ("pruned", "unpruned") goes into the names.
    """
    batch, new, given = pipeline.record.batch, len(expected[0].tokens), tuple(expected[0].given)
    made: list[_Answer] = []
    for start in range(0, len(samples), batch):
        made += _answer(pipeline, samples[start : start + batch], new, given)
    pairs = list(zip(made, expected, strict=True))
    wrong = [i for i, (m, e) in enumerate(pairs) if set(m.kept) != set(e.kept.tolist())]
    count = f"{len(samples)} samples"
    kept = f"{len(wrong)} of {count} differ, first sample {wrong[0]}" if wrong else f"equal on {count}"
    return [
        Check(name=f"{side}: kept indices", passed=not wrong, detail=kept),
        _close(f"{side}: image features", [(m.features, e.features) for m, e in pairs], dtype),
        _close(f"{side}: logits", [(m.logits, e.logits) for m, e in pairs], dtype),
        _same_tokens(f"{side}: greedy tokens", [m.tokens for m in made], expected, TOLERANCES[dtype]),
        *(_close(f"{side}: {one}", [(m.given[one], e.given[one]) for m, e in pairs], dtype) for one in given),
    ]


def _close(name: str, pairs: Sequence[tuple[NDArray[np.floating], Tensor]], dtype: str) -> Check:
    worst = max(_difference(found, expected.numpy()) for found, expected in pairs)
    limit = TOLERANCES[dtype]
    detail = f"largest difference from torch {worst:.1e}, allowed {limit:.0e} of the largest value"
    return Check(name=name, passed=worst <= limit, detail=detail, value=worst, tolerance=limit)


def _difference(found: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """Largest absolute difference over the largest expected value (or 1); infinite for other shapes or NaN."""
    if found.shape != expected.shape:
        return float("inf")
    difference = float(np.abs(found.astype(np.float64) - expected).max()) / max(1.0, float(np.abs(expected).max()))
    return difference if np.isfinite(difference) else float("inf")


def _same_tokens(name: str, found: Sequence[list[int]], expected: Sequence[Reference], tolerance: float) -> Check:
    compared, ties = 0, 0
    for i, (tokens, one) in enumerate(zip(found, expected, strict=True)):
        for step, (ours, theirs) in enumerate(zip(tokens, one.tokens.tolist(), strict=True)):
            compared += 1
            if ours == theirs:
                continue
            if float(one.margins[step]) > 2 * tolerance * max(1.0, float(one.logits.abs().max())):
                detail = f"sample {i}, token {step}: {ours}, torch says {theirs}"
                return Check(name=name, passed=False, detail=detail)
            # two tokens closer than the tolerance: either is right, and what follows cannot be compared
            ties += 1
            break
    detail = f"{compared - ties} tokens equal" + (f", {ties} ties" if ties else "")
    return Check(name=name, passed=compared > ties, detail=detail)


def check_router(graph: Graph, router: Router, samples: Sequence[Question], dtype: str = "float32") -> Check:
    """The losses that ONNX Runtime predicts of the samples against torch."""
    batch, pairs = graph.shapes["pixel_values"][0], []
    for start in range(0, len(samples), batch):
        pixels = torch.cat([sample.pixel_values for sample in samples[start : start + batch]])
        with torch.no_grad():
            pairs.append((graph.run({"pixel_values": pixels.numpy()})["losses"], router(pixels)))
    return _close("router: predicted losses", pairs, dtype)


def check_power(golden: Golden, dtype: str = "float32") -> Check:
    """Whether the comparison could have failed: the unpruned model's logits must differ by more than the tolerance."""
    pairs = [(plain.logits.numpy(), carved.logits) for plain, carved in zip(golden.plain, golden.pruned, strict=True)]
    least = min(_difference(found, expected.numpy()) for found, expected in pairs)
    limit = TOLERANCES[dtype]
    detail = f"the unpruned model's logits differ by {least:.1e} or more, over the tolerance of {limit:.0e}"
    if least <= limit:
        detail = f"on some sample the unpruned model's logits differ by only {least:.1e}"
    return Check(name="power", passed=least > limit, detail=detail, value=least, tolerance=limit)
