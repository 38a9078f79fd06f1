"""Model families: one adapter per architecture, and the only code that knows a model's attribute names."""

from typing import Any

from torch import nn

from tokcarve.passes.capture import capture as capture_parts
from tokcarve.passes.errors import ModelError
from tokcarve.passes.families import llava
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.graph import TokenGraphs

__all__ = ["FAMILIES", "capture", "empty", "geometry"]

FAMILIES = {"LlavaForConditionalGeneration": llava}


def _family(config: Any) -> Any:
    names = list(getattr(config, "architectures", None) or ["(none)"])
    for name in names:
        if name in FAMILIES:
            return FAMILIES[name]
    raise ModelError(
        f"architecture {', '.join(names)} (config.json, 'architectures') has no adapter; "
        f"supported: {', '.join(FAMILIES)}"
    )


def geometry(config: Any) -> Geometry:
    """The shapes of the model that a Hugging Face `config` describes; ModelError where no adapter fits."""
    found: Geometry = _family(config).geometry(config)
    return found


def empty(config: Any) -> nn.Module:
    """The model of `config` on the meta device: every shape, no weights, milliseconds and megabytes."""
    model: nn.Module = _family(config).empty(config)
    return model


def capture(model: Any) -> TokenGraphs:
    """The token graphs of a loaded (or meta-device) Hugging Face model; weights are shared, the model is untouched."""
    family = _family(model.config)
    return capture_parts(family.parts(model), family.geometry(model.config))
