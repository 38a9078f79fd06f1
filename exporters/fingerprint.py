"""What a block computes, as far as that can be told without running it: equal where weights alone differ."""

import json
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["fingerprint", "tensors_of"]


def fingerprint(block: nn.Module) -> tuple[Any, tuple[Any, ...]]:
    """All that makes a block what it is but the values of its weights, hashable; and the objects that are known by
    their identity in it, to be kept as long as it is."""
    held: list[Any] = []

    def told(value: Any) -> Any:
        if isinstance(value, (bool, int, float, str, type(None), torch.dtype, type)):
            return value
        if isinstance(value, (tuple, list)):
            return tuple(told(one) for one in value)
        if hasattr(value, "to_dict"):
            return json.dumps(value.to_dict(), sort_keys=True, default=str), getattr(value, "_attn_implementation", "")
        held.append(value)
        return id(value)

    modules = tuple(
        (name, type(one), tuple((key, told(value)) for key, value in sorted(vars(one).items()) if _tells(key, value)))
        for name, one in block.named_modules()
    )
    tensors = tuple((name, one.dtype, tuple(one.shape), one.stride()) for name, one in tensors_of(block).items())
    return (modules, tensors), tuple(held)


_OWN = frozenset(vars(nn.Module()))
"""Attributes that torch gives every module."""


def _tells(attribute: str, value: Any) -> bool:
    """Whether an attribute may say what a block computes: not a layer's number, for that is where its cache is, which
    is given; of torch's own those alone that are functions around it."""
    if attribute in _OWN:
        return "hooks" in attribute and bool(value)
    return attribute != "layer_idx"


def tensors_of(block: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by all of its names."""
    parameters = block.named_parameters(remove_duplicate=False)
    return dict((*parameters, *block.named_buffers(remove_duplicate=False)))
