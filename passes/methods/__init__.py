"""The methods: one file each, and this table."""

from tokcarve.passes.methods.as_vit import ASViT
from tokcarve.passes.methods.atp_llava import ATPLlava
from tokcarve.passes.methods.cdpruner import CDPruner
from tokcarve.passes.methods.controls import NoReduction, Random, Uniform
from tokcarve.passes.methods.covipal import CoViPAL
from tokcarve.passes.methods.dart import DART
from tokcarve.passes.methods.divprune import DivPrune
from tokcarve.passes.methods.downsample import Downsample
from tokcarve.passes.methods.dyvte import DyVTE
from tokcarve.passes.methods.fastv import FastV
from tokcarve.passes.methods.feather import Feather
from tokcarve.passes.methods.flowcut import FlowCut
from tokcarve.passes.methods.hiprune import HiPrune
from tokcarve.passes.methods.holov import HoloV
from tokcarve.passes.methods.llavolta import LLaVolta
from tokcarve.passes.methods.pooling import Pooling
from tokcarve.passes.methods.prune_and_merge import PruneAndMerge
from tokcarve.passes.methods.pyramiddrop import PyramidDrop
from tokcarve.passes.methods.recoverable import Recoverable
from tokcarve.passes.methods.redundancylens import RedundancyLens
from tokcarve.passes.methods.sparsevlm import SparseVLM
from tokcarve.passes.methods.todre import ToDRE
from tokcarve.passes.methods.tokencarve import TokenCarve
from tokcarve.passes.methods.tome import ToMe
from tokcarve.passes.methods.turbo import Turbo
from tokcarve.passes.methods.vflowopt import VFlowOpt
from tokcarve.passes.methods.visiondrop import VisionDrop
from tokcarve.passes.methods.visionzip import VisionZip
from tokcarve.passes.methods.vla_pruner import VLAPruner
from tokcarve.passes.methods.vtc_cls import VtcCls
from tokcarve.passes.stage import Method

__all__ = ["METHODS"]

METHODS: dict[str, type[Method]] = {
    "none": NoReduction,
    "random": Random,
    "uniform": Uniform,
    "pooling": Pooling,
    "downsample": Downsample,
    "flowcut": FlowCut,
    "as_vit": ASViT,
    "vtc_cls": VtcCls,
    "hiprune": HiPrune,
    "visionzip": VisionZip,
    "visiondrop": VisionDrop,
    "holov": HoloV,
    "todre": ToDRE,
    "divprune": DivPrune,
    "cdpruner": CDPruner,
    "vflowopt": VFlowOpt,
    "recoverable": Recoverable,
    "tome": ToMe,
    "turbo": Turbo,
    "prune_and_merge": PruneAndMerge,
    "covipal": CoViPAL,
    "fastv": FastV,
    "vla_pruner": VLAPruner,
    "redundancylens": RedundancyLens,
    "pyramiddrop": PyramidDrop,
    "sparsevlm": SparseVLM,
    "dyvte": DyVTE,
    "llavolta": LLaVolta,
    "dart": DART,
    "feather": Feather,
    "tokencarve": TokenCarve,
    "atp_llava": ATPLlava,
}
