"""The recipe entries of methods that reduce tokens before the language model, and perhaps there too."""

from typing import Annotated, Literal

from pydantic import Field

from tokcarve.recipes.recipe_parts import (
    Count,
    Layers,
    Left,
    MethodRecipe,
    NotNegative,
    Order,
    Positive,
    Seed,
    Share,
    Shares,
)

__all__ = [
    "ASViTRecipe",
    "CDPrunerRecipe",
    "CoViPALRecipe",
    "DivPruneRecipe",
    "DownsampleRecipe",
    "EncoderMethod",
    "FlowCutRecipe",
    "HiPruneRecipe",
    "HoloVRecipe",
    "NoneRecipe",
    "PoolingRecipe",
    "PruneAndMergeRecipe",
    "RandomRecipe",
    "RecoverableRecipe",
    "ToDRERecipe",
    "ToMeRecipe",
    "TurboRecipe",
    "UniformRecipe",
    "VFlowOptRecipe",
    "VisionDropRecipe",
    "VisionZipRecipe",
    "VtcClsRecipe",
]


class NoneRecipe(MethodRecipe):
    """The unpruned model."""

    name: Literal["none"] = "none"


class RandomRecipe(MethodRecipe):
    """A random subset, one draw per seed."""

    name: Literal["random"] = "random"
    seed: Seed = 0


class UniformRecipe(MethodRecipe):
    """A uniform grid."""

    name: Literal["uniform"] = "uniform"


class PoolingRecipe(MethodRecipe):
    """Average pooling after the connector."""

    name: Literal["pooling"] = "pooling"


class DownsampleRecipe(MethodRecipe):
    """A smaller image."""

    name: Literal["downsample"] = "downsample"


class FlowCutRecipe(MethodRecipe):
    """FlowCut; see passes/methods/flowcut.py."""

    name: Literal["flowcut"] = "flowcut"
    form: Literal["static", "exact", "single"] = "static"
    ema: Share = 0.5
    interval: Count = 2
    assumed_entropy: Share = 0.9
    language_stage: bool = False


class ASViTRecipe(MethodRecipe):
    """AS-ViT; see passes/methods/as_vit.py."""

    name: Literal["as_vit"] = "as_vit"
    form: Literal["static", "threshold"] = "static"
    layers: Layers | None = None
    accumulate: bool = False
    thresholds: Shares | None = None
    scale: Positive | None = None


class VtcClsRecipe(MethodRecipe):
    """VTC-CLS; see passes/methods/vtc_cls.py."""

    name: Literal["vtc_cls"] = "vtc_cls"
    layers: Count = 3


class HiPruneRecipe(MethodRecipe):
    """HiPrune; see passes/methods/hiprune.py."""

    name: Literal["hiprune"] = "hiprune"
    alpha: Share = 0.1
    object_layer: Count | None = None


class VisionZipRecipe(MethodRecipe):
    """VisionZip; see passes/methods/visionzip.py."""

    name: Literal["visionzip"] = "visionzip"
    contextual: Share = 0.15625
    order: Order = "raster"


class VisionDropRecipe(MethodRecipe):
    """VisionDrop; see passes/methods/visiondrop.py."""

    name: Literal["visiondrop"] = "visiondrop"
    scope: Literal["all", "encoder"] = "all"
    order: Order = "raster"
    layers: Layers | None = None
    counts: Left | None = None


class HoloVRecipe(MethodRecipe):
    """HoloV; see passes/methods/holov.py."""

    name: Literal["holov"] = "holov"
    rank_by: Literal["attn", "holistic"] = "attn"
    crops: Count | None = None
    alpha: NotNegative = 0.09


class ToDRERecipe(MethodRecipe):
    """ToDRE; see passes/methods/todre.py."""

    name: Literal["todre"] = "todre"
    exit: bool = True
    layer: Annotated[int, Field(ge=0)] | None = None
    threshold: Share = 0.1


class DivPruneRecipe(MethodRecipe):
    """DivPrune; see passes/methods/divprune.py."""

    name: Literal["divprune"] = "divprune"


class CDPrunerRecipe(MethodRecipe):
    """CDPruner; see passes/methods/cdpruner.py."""

    name: Literal["cdpruner"] = "cdpruner"
    theta: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] | None = None


class VFlowOptRecipe(MethodRecipe):
    """VFlowOpt; see passes/methods/vflowopt.py."""

    name: Literal["vflowopt"] = "vflowopt"
    threshold: NotNegative = 34.76
    alpha: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] = 0.0
    cell: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 15.581
    scope: Literal["all", "first"] = "all"
    ratios: Shares = (0.98334, 0.87733)
    layers: Layers | None = None


class RecoverableRecipe(MethodRecipe):
    """Recoverable Compression, fixed budget; see passes/methods/recoverable.py."""

    name: Literal["recoverable"] = "recoverable"
    clusters: Share = 0.1
    text_share: Share = 0.5
    text_weight: NotNegative = 50.0
    neighbours: Count = 32
    order: Order = "raster"


class ToMeRecipe(MethodRecipe):
    """ToMe; see passes/methods/tome.py."""

    name: Literal["tome"] = "tome"
    proportional: bool = True
    order: Order = "raster"


class TurboRecipe(MethodRecipe):
    """Turbo; see passes/methods/turbo.py."""

    name: Literal["turbo"] = "turbo"
    alpha: NotNegative = 5.0
    scale: NotNegative = 30.0
    proportional: bool = True
    order: Order = "raster"


class CoViPALRecipe(MethodRecipe):
    """CoViPAL; see passes/methods/covipal.py."""

    name: Literal["covipal"] = "covipal"
    blocks: Count = 4
    width: Count | None = None
    heads: Count = 8
    guide: NotNegative = 1.0
    guide_layer: Annotated[int, Field(ge=0)] | None = None


class PruneAndMergeRecipe(MethodRecipe):
    """Prune-and-Merge, fixed matrices; see passes/methods/prune_and_merge.py."""

    name: Literal["prune_and_merge"] = "prune_and_merge"
    ridge: Positive = 0.001


EncoderMethod = (
    NoneRecipe
    | RandomRecipe
    | UniformRecipe
    | PoolingRecipe
    | DownsampleRecipe
    | FlowCutRecipe
    | ASViTRecipe
    | VtcClsRecipe
    | HiPruneRecipe
    | VisionZipRecipe
    | VisionDropRecipe
    | HoloVRecipe
    | ToDRERecipe
    | DivPruneRecipe
    | CDPrunerRecipe
    | VFlowOptRecipe
    | RecoverableRecipe
    | ToMeRecipe
    | TurboRecipe
    | PruneAndMergeRecipe
    | CoViPALRecipe
)
"""Any of them."""
