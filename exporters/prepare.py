"""Image preparation inside a vision graph: raw pixels of any size in, what a checkpoint's own processor makes out.

For runtimes that decode an image and cannot be told to prepare it as the checkpoint was trained. Resizing follows
Pillow's way with whole numbers (coefficients of 22 bits, one pass per axis, each rounded to a byte), computed in
float64, where such numbers are exact; so the pixels are equal, not merely near.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tokcarve.passes.errors import ModelError
from tokcarve.passes.inputs.images import ImageProcessor

__all__ = ["Prepare", "unpreparable"]

_BILINEAR, _BICUBIC = 2, 3
_SUPPORT = {_BILINEAR: 1.0, _BICUBIC: 2.0}
_ONE = 2.0**22  # what a coefficient of 1 is as a whole number


def unpreparable(processor: ImageProcessor) -> str | None:
    """Why a graph cannot prepare images as `processor` does; None where it can."""
    if processor.pad_square:
        return "it pads images to a square"
    if processor.resample not in _SUPPORT:
        return f"it resizes with Pillow's filter {processor.resample}, and 2 (bilinear) and 3 (bicubic) are supported"
    if processor.resize_to is not None:
        least = processor.resize_to
    elif processor.shortest_edge is not None and processor.crop_to is not None:
        least = (processor.shortest_edge, processor.shortest_edge)
    else:
        return "it leaves images in different sizes"
    if processor.crop_to is not None and any(crop > edge for crop, edge in zip(processor.crop_to, least, strict=True)):
        return f"it crops to {processor.crop_to}, which is more than images are resized to"
    return None


class Prepare(nn.Module):
    """RGB pixels float32 [1, 3, height, width] of whole numbers 0..255 -> pixel_values float32 [1, 3, h, w].

    ModelError for a processor that `unpreparable` has something to say of.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, processor: ImageProcessor) -> None:
        super().__init__()
        reason = unpreparable(processor)
        target = processor.crop_to if processor.crop_to is not None else processor.resize_to
        if reason is not None or target is None:
            raise ModelError(f"a graph cannot prepare images as this checkpoint's image processor does: {reason}")
        self.processor, self.target = processor, target
        self.register_buffer("mean", torch.tensor(processor.mean or (0.0,) * 3).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(processor.std or (1.0,) * 3).view(-1, 1, 1), persistent=False)

    def forward(self, pixels: Float[Tensor, "1 3 height width"]) -> Float[Tensor, "1 3 h w"]:
        exact = pixels[0].double()
        height, width = torch.ones_like(exact[0, :, 0]), torch.ones_like(exact[0, 0])
        rows, columns = self._resized(height.sum(), width.sum())
        across = _resize(exact.transpose(1, 2), width, columns, self.target[1], self.processor.resample)
        made = _resize(across.transpose(1, 2), height, rows, self.target[0], self.processor.resample)
        values = (made if self.processor.rescale is None else made * self.processor.rescale).float()
        return ((values - self.mean) / self.std).unsqueeze(0)

    def _resized(self, height: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        """What a height and width become before cropping, float64 []."""
        edge, fixed = self.processor.shortest_edge, self.processor.resize_to
        if fixed is not None:
            return torch.ones_like(height) * fixed[0], torch.ones_like(width) * fixed[1]
        assert edge is not None
        short, long = torch.minimum(height, width), torch.maximum(height, width)
        longer = torch.floor(edge * long / short)
        return torch.where(height > short, longer, float(edge)), torch.where(width > short, longer, float(edge))


def _resize(lines: Tensor, ones: Tensor, resized: Tensor, target: int, resample: int) -> Tensor:
    """Lines float64 [3, size, n] with their second axis resized to `resized` [], of which the `target` in the middle
    are made: [3, target, n], whole numbers 0..255. `ones` [size]."""
    scale = ones.sum() / resized
    stretch, support = scale.clamp(min=1), _SUPPORT[resample]
    first = torch.floor((resized - target) / 2)
    centre = ((torch.arange(target, dtype=torch.float64) + first + 0.5) * scale).unsqueeze(1)
    at = torch.cumsum(ones, dim=0) - 1
    reach = support * stretch
    inside = (at >= torch.floor(centre - reach + 0.5)) & (at < torch.floor(centre + reach + 0.5))
    weight = torch.where(inside, _filtered((at - centre + 0.5) / stretch, resample), 0.0)
    share = weight / weight.sum(dim=1, keepdim=True) * _ONE
    whole = torch.sign(share) * torch.floor(share.abs() + 0.5)
    return torch.floor((whole @ lines) / _ONE + 0.5).clamp(0, 255)


def _filtered(distance: Tensor, resample: int) -> Tensor:
    """The weight of a pixel at a distance, in pixels of the smaller of both images."""
    x = distance.abs()
    if resample == _BILINEAR:
        return (1 - x).clamp(min=0)
    near, far = ((1.5 * x - 2.5) * x) * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
