"""Weights into a family's model, from safetensors alone: nothing that a checkpoint brings is executed."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig

from tokcarve.passes.errors import ModelError
from tokcarve.passes.families import FAMILIES

__all__ = ["read_config", "read_model"]


def read_config(directory: Path) -> Any:
    """The Hugging Face config of a checkpoint directory; remote code is never run."""
    try:
        return AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{directory}/config.json does not describe a model: {_first_line(error)}") from error


def read_model(directory: Path, *, dtype: torch.dtype = torch.float32, device: str = "cpu") -> nn.Module:
    """The model of `directory` with its weights in `dtype` on `device`, attention by scaled_dot_product_attention.

    ModelError when a weight is missing, has another shape than the config says, or the files cannot be read.
    """
    config = read_config(directory)
    architecture = next((name for name in config.architectures or [] if name in FAMILIES), None)
    if architecture is None:
        raise ModelError(f"architecture {config.architectures} has no adapter; supported: {', '.join(FAMILIES)}")
    try:
        model, report = FAMILIES[architecture].MODEL.from_pretrained(
            directory,
            dtype=dtype,
            attn_implementation="sdpa",
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"the weights in {directory} cannot be loaded: {_first_line(error)}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"{len(missing)} weights are missing in {directory}, the first is {missing[0]!r}; "
            "get the complete checkpoint"
        )
    loaded: nn.Module = model.eval().to(device)
    return loaded


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
