"""How attention becomes ONNX: one tidy decomposition for the shapes that are all known here."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnxscript import opset18 as op

from tokcarve.passes.errors import ExportError

__all__ = ["MASKED", "TRANSLATIONS"]

# Finite, so that a row that may attend nothing stays finite, and inside the float16 range for later.
MASKED = -1e4


def _ungrouped(repeated: Any) -> Any | None:
    """The key or value before `repeat_kv`, or None if `repeated` [batch, heads, rows, dim] was not made that way."""
    for kind in ("Reshape", "Expand", "Unsqueeze"):
        node = repeated.producer()
        while node is not None and node.op_type == "Identity":
            node = node.inputs[0].producer()
        if node is None or node.op_type != kind:
            return None
        repeated = node.inputs[0]
    return repeated if repeated.shape is not None and len(repeated.shape) == 4 else None


def _number(value: float, like: Any) -> Any:
    """A constant of the type of `like`: strongly typed graphs take no other beside it."""
    return op.Constant(value=ir.Tensor(np.array(value, like.dtype.numpy())))


def _additive(mask: Any, scores: Any) -> Any:
    """A boolean mask (true = attend) as numbers to add to the scores; another mask is one already."""
    if mask.dtype.name != "BOOL":
        return mask
    return op.Where(mask, _number(0.0, scores), _number(MASKED, scores))


def _reshape(value: Any, shape: list[int]) -> Any:
    return op.Reshape(value, op.Constant(value_ints=shape))


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(q k^T * scale + mask) v with q [batch, heads, rows, dim], where rows may be open.

    The stock translation flattens k to transpose it, scales q and k apart and tests every probability for NaN. Keys
    that `repeat_kv` copied once per query head are read uncopied: the query heads of one group become its rows.
    """
    if is_causal or enable_gqa or dropout_p:
        raise ExportError(
            f"attention with is_causal={is_causal}, enable_gqa={enable_gqa}, dropout_p={dropout_p} has no ONNX form "
            "here; give an explicit mask and repeat the keys"
        )
    batch, heads, dim = (int(query.shape[at]) for at in (0, 1, 3))
    scaled = op.Mul(query, _number(float(scale if scale is not None else dim**-0.5), query))
    base_key, base_value = _ungrouped(key), _ungrouped(value)
    grouped = base_key is not None and base_value is not None and int(base_key.shape[1]) < heads
    if grouped:
        key, value = base_key, base_value
        scaled = _reshape(scaled, [batch, int(key.shape[1]), -1, dim])
    scores = op.MatMul(scaled, op.Transpose(key, perm=[0, 1, 3, 2]))
    if grouped:
        scores = _reshape(scores, [batch, heads, -1, 0])
    if attn_mask is not None:
        scores = op.Add(scores, _additive(attn_mask, query))
    weights = op.Softmax(scores, axis=-1)
    if not grouped:
        return op.MatMul(weights, value)
    weights = _reshape(weights, [batch, int(value.shape[1]), -1, 0])
    return _reshape(op.MatMul(weights, value), [batch, heads, -1, dim])


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: _attention
}
"""For `torch.onnx.export(custom_translation_table=...)`."""
