"""The recipe entries of methods that reduce tokens, or the work on them, in the language model."""

from typing import Annotated, Literal

from pydantic import Field

from tokcarve.recipes.recipe_parts import Count, Layers, Left, Limits, MethodRecipe, NotNegative, Share

__all__ = [
    "ATPLlavaRecipe",
    "DARTRecipe",
    "DyVTERecipe",
    "FastVRecipe",
    "FeatherRecipe",
    "LLaVoltaRecipe",
    "LanguageMethod",
    "PyramidDropRecipe",
    "RedundancyLensRecipe",
    "SparseVLMRecipe",
    "TokenCarveRecipe",
    "VLAPrunerRecipe",
]


class FastVRecipe(MethodRecipe):
    """FastV; see passes/methods/fastv.py."""

    name: Literal["fastv"] = "fastv"
    layer: Count = 2


class VLAPrunerRecipe(MethodRecipe):
    """VLA-Pruner; see passes/methods/vla_pruner.py."""

    name: Literal["vla_pruner"] = "vla_pruner"
    layer: Count = 3
    action_layer: Annotated[int, Field(ge=0)] | None = None
    attention: Literal["prefill", "last"] = "prefill"


class PyramidDropRecipe(MethodRecipe):
    """PyramidDrop; see passes/methods/pyramiddrop.py."""

    name: Literal["pyramiddrop"] = "pyramiddrop"
    layers: Layers | None = None
    ratio: Share | None = None


class SparseVLMRecipe(MethodRecipe):
    """SparseVLM; see passes/methods/sparsevlm.py."""

    name: Literal["sparsevlm"] = "sparsevlm"
    version: Literal["v1.5", "plus"] = "v1.5"
    layers: Layers | None = None
    heads: Count | None = None


class DyVTERecipe(MethodRecipe):
    """DyVTE, fixed exit; see passes/methods/dyvte.py."""

    name: Literal["dyvte"] = "dyvte"
    layer: Annotated[int, Field(ge=0)] | None = None


class LLaVoltaRecipe(MethodRecipe):
    """LLaVolta pooling; see passes/methods/llavolta.py."""

    name: Literal["llavolta"] = "llavolta"
    layer: Count = 2


class RedundancyLensRecipe(MethodRecipe):
    """RedundancyLens; see passes/methods/redundancylens.py."""

    name: Literal["redundancylens"] = "redundancylens"
    attention_layers: Layers | None = None
    feed_layers: Layers | None = None
    window: Count = 256
    share: Annotated[float, Field(gt=0, le=1)] = 0.2


class ATPLlavaRecipe(MethodRecipe):
    """ATP-LLaVA; see passes/methods/atp_llava.py."""

    name: Literal["atp_llava"] = "atp_llava"
    form: Literal["heads", "budget"] = "heads"
    layers: Layers | None = None
    stride: Count = 2
    width: Count = 64
    deep: NotNegative = 0.05
    target: NotNegative = 0.2
    thresholds: Limits | None = None
    counts: Left | None = None


class TokenCarveRecipe(MethodRecipe):
    """TokenCarve; see passes/methods/tokencarve.py."""

    name: Literal["tokencarve"] = "tokencarve"
    layer: Count = 2
    weight: Share = 0.5
    contribution: Literal["singular", "eigh", "norm"] = "singular"
    rounds: Count = 40
    directions: Count = 128


class DARTRecipe(MethodRecipe):
    """DART; see passes/methods/dart.py."""

    name: Literal["dart"] = "dart"
    layer: Count = 2
    image_pivots: Count = 4
    text_pivots: Count = 4


class FeatherRecipe(MethodRecipe):
    """FEATHER; see passes/methods/feather.py."""

    name: Literal["feather"] = "feather"
    layers: Layers | None = None
    stride: Count = 3
    first: Count | None = None


LanguageMethod = (
    FastVRecipe
    | VLAPrunerRecipe
    | RedundancyLensRecipe
    | PyramidDropRecipe
    | SparseVLMRecipe
    | DyVTERecipe
    | LLaVoltaRecipe
    | DARTRecipe
    | FeatherRecipe
    | TokenCarveRecipe
    | ATPLlavaRecipe
)
"""Any of them."""
