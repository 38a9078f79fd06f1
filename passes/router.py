"""A cheap look at an image: what an early vision layer makes of it, pooled, and from that the loss of every budget.

Features are float32: of the patch rows behind the layer their mean and deviation per channel, and with a [CLS] token
the entropy of its attention in that layer, in nats, per head; [batch, 2 * hidden + heads].
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokcarve.passes.geometry import Geometry
from tokcarve.passes.graph import Parts
from tokcarve.passes.taps import ClsAttention

__all__ = ["PREFIX", "Glimpse", "Router", "router_layer"]

PREFIX = "router."
"""Of a router's tensors among those of an artifact: weight [features, budgets] and bias [budgets]."""

_SHARE = 12


def router_layer(geometry: Geometry) -> int:
    """The layer that a router reads: the first of a short tower, behind a twelfth of a long one."""
    return max(round(geometry.vision.layers_used / _SHARE) - 1, 0)


class Glimpse(nn.Module):
    """The features of images, by the blocks up to `layer`."""

    def __init__(self, parts: Parts, geometry: Geometry, layer: int) -> None:
        super().__init__()
        self.patches = parts.patches
        self.before = nn.ModuleList(parts.vision_blocks[:layer])
        self.block = parts.vision_blocks[layer]
        self.attention = ClsAttention(self.block) if geometry.vision.prefix else None
        self.prefix = geometry.vision.prefix

    def forward(self, pixel_values: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch features"]:
        hidden = self.patches(pixel_values)
        for block in self.before:
            hidden = block(hidden)
        rows = self.block(hidden)[:, self.prefix :].float()
        mean = rows.mean(dim=1)
        deviation = (rows - mean.unsqueeze(1)).square().mean(dim=1).sqrt()
        if self.attention is None:
            return torch.cat([mean, deviation], dim=1)
        looked = self.attention(hidden)[:, :, self.prefix :]
        share = looked / looked.sum(dim=2, keepdim=True)
        entropy = -(share * share.clamp_min(1e-30).log()).sum(dim=2)
        return torch.cat([mean, deviation, entropy], dim=1)


class Router(nn.Module):
    """Pixels -> predicted losses float32 [batch, budgets]."""

    weight: Tensor
    bias: Tensor

    def __init__(self, glimpse: Glimpse, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.glimpse = glimpse
        self.register_buffer("weight", tensors[f"{PREFIX}weight"])
        self.register_buffer("bias", tensors[f"{PREFIX}bias"])

    def forward(self, pixel_values: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch budgets"]:
        losses: Tensor = self.glimpse(pixel_values) @ self.weight + self.bias
        return losses
