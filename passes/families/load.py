"""Weights into a family's model, from safetensors alone: nothing that a checkpoint brings is executed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig

from tokcarve.passes.errors import ModelError
from tokcarve.passes.families import FAMILIES

__all__ = ["build_model", "read_config", "read_model"]


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
    return build_model(read_config(directory), directory, dtype=dtype).to(device)


def build_model(
    config: Any, directory: Path, *, dtype: torch.dtype, tensors: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """The model of `config` on the CPU with the weights in `directory`, or with `tensors` under the names that weights
    have there, which it takes as they are; errors as for `read_model`."""
    architecture = next((name for name in config.architectures or [] if name in FAMILIES), None)
    if architecture is None:
        raise ModelError(f"architecture {config.architectures} has no adapter; supported: {', '.join(FAMILIES)}")
    source: dict[str, Any] = {"pretrained_model_name_or_path": directory, "use_safetensors": True}
    if tensors is not None:
        source = {"pretrained_model_name_or_path": None, "config": config, "state_dict": dict(tensors)}
    try:
        model, report = FAMILIES[architecture].MODEL.from_pretrained(
            **source, dtype=dtype, attn_implementation="sdpa", local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"the weights in {directory} cannot be loaded: {_first_line(error)}") from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ModelError(
            f"{len(missing)} weights are missing in {directory}, the first is {missing[0]!r}; "
            "get the complete checkpoint"
        )
    loaded: nn.Module = model.eval()
    return loaded


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
