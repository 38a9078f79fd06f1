"""The methods: one file each, and this table."""

from tokcarve.passes.methods.controls import NoReduction, Random, Uniform
from tokcarve.passes.methods.flowcut import FlowCut
from tokcarve.passes.methods.pooling import Pooling
from tokcarve.passes.methods.vtc_cls import VtcCls
from tokcarve.passes.stage import Method

__all__ = ["METHODS"]

METHODS: dict[str, type[Method]] = {
    "none": NoReduction,
    "random": Random,
    "uniform": Uniform,
    "pooling": Pooling,
    "flowcut": FlowCut,
    "vtc_cls": VtcCls,
}
