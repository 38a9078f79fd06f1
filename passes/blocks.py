"""The leaves of the vision and embedding graphs: a model's own blocks behind signatures that a graph can call.

Every leaf is shape-agnostic in batch and rows, so a rewritten graph runs at its new lengths unchanged.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = [
    "Attend",
    "Embedding",
    "Feed",
    "PatchEmbedding",
    "ResizedPatches",
    "VisionBlock",
]


class PatchEmbedding(nn.Module):
    """Pixels [batch, 3, height, width] -> rows [batch, prefix + patches, hidden], position embeddings added."""

    def __init__(self, embeddings: nn.Module, norm: nn.Module | None) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.norm = norm if norm is not None else nn.Identity()

    def forward(self, pixel_values: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch rows hidden"]:
        rows: Tensor = self.norm(self.embeddings(pixel_values))
        return rows


class ResizedPatches(nn.Module):
    """The patches of an image made smaller first: rows [batch, prefix + h * w, hidden] of a grid (h, w).

    Pixels shrink by an antialiased bilinear filter, position embeddings by the checkpoint's own interpolation.
    """

    down: Tensor
    across: Tensor

    def __init__(self, patches: PatchEmbedding, grid: tuple[int, int], *, patch: int, side: int) -> None:
        super().__init__()
        self.patches = patches
        self.register_buffer("down", _shrink(grid[0] * patch, side), persistent=False)
        self.register_buffer("across", _shrink(grid[1] * patch, side).T.contiguous(), persistent=False)

    def forward(self, pixel_values: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch rows hidden"]:
        down, across = self.down.to(pixel_values.device), self.across.to(pixel_values.device)
        small = (down @ pixel_values.float() @ across).to(pixel_values.dtype)
        rows: Tensor = self.patches.norm(self.patches.embeddings(small, interpolate_pos_encoding=True))
        return rows


def _shrink(short: int, side: int) -> Tensor:
    """[short, side]: what each of `short` pixels takes from a line of `side`; every row sums to 1."""
    # every column of the identity is a line; a picture one pixel wide would be shrunk wrongly by torch 2.13
    lines = torch.eye(side)[None, None]
    made = torch.nn.functional.interpolate(
        lines, size=(short, side), mode="bilinear", align_corners=False, antialias=True
    )
    return made[0, 0].contiguous()


class VisionBlock(nn.Module):
    """One encoder layer.

    `mask` [batch, 1, 1, rows] is True where a row may be attended, or a number added to the logits of attention (None:
    every row alike).
    """

    def __init__(self, layer: nn.Module, *, heads: int, scale: float) -> None:
        super().__init__()
        self.layer = layer
        self.heads = heads
        self.scale = scale

    def forward(self, hidden: Float[Tensor, "batch rows hidden"], mask: Tensor | None = None) -> Tensor:
        out: Tensor = self.layer(hidden, attention_mask=mask)
        return out

    def attend(self, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
        """The first half of the layer: `hidden` plus attention over it, same shape."""
        added, _ = self.layer.get_submodule("self_attn")(self.normed(hidden), attention_mask=mask)
        out: Tensor = hidden + added
        return out

    def feed(self, hidden: Tensor) -> Tensor:
        """The second half: `hidden` plus its MLP, same shape."""
        out: Tensor = hidden + self.layer.get_submodule("mlp")(self.layer.get_submodule("layer_norm2")(hidden))
        return out

    def normed(self, hidden: Tensor) -> Tensor:
        """The rows as this block's attention sees them, same shape."""
        rows: Tensor = self.layer.get_submodule("layer_norm1")(hidden)
        return rows

    def project(self, which: str, rows: Tensor) -> Tensor:
        """`rows` [batch, n, hidden] through the block's q, k or v projection -> [batch, heads, n, head_dim]."""
        out: Tensor = self.layer.get_submodule(f"self_attn.{which}_proj")(rows)
        return out.view(*out.shape[:-1], self.heads, -1).transpose(1, 2)


class Attend(nn.Module):
    """The attention half of a block as a leaf of its own; same signature as the block."""

    def __init__(self, block: VisionBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden: Float[Tensor, "batch rows hidden"], mask: Tensor | None = None) -> Tensor:
        return self.block.attend(hidden, mask)


class Feed(nn.Module):
    """The MLP half of a block as a leaf of its own."""

    def __init__(self, block: VisionBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, hidden: Float[Tensor, "batch rows hidden"]) -> Tensor:
        return self.block.feed(hidden)


class Embedding(nn.Module):
    """Prompt ids and visual tokens -> the language model's input rows and their positions.

    The j-th image token of a prompt receives visual token j. With `total` set, positions are those of the unpruned
    prompt (`kept` says which patches the visual tokens were, and every later row counts from `total`); without, rows
    are numbered as they stand. Rows after the prompt's end (right padding) are numbered on; nothing attends to them.
    """

    def __init__(self, tokens: nn.Module, image_token_id: int, total: int | None = None) -> None:
        super().__init__()
        self.tokens = tokens
        self.image_token_id = image_token_id
        self.total = total

    def forward(
        self,
        input_ids: Int[Tensor, "batch rows"],
        image_features: Float[Tensor, "batch keep hidden"],
        kept: Int[Tensor, "batch keep"] | None = None,
    ) -> tuple[Tensor, Tensor]:
        image = input_ids == self.image_token_id
        text: Tensor = self.tokens(torch.where(image, 0, input_ids))
        rank = (torch.cumsum(image.long(), dim=1) - 1).clamp(0, image_features.shape[1] - 1)
        visual = torch.gather(image_features, 1, rank.unsqueeze(-1).expand(-1, -1, image_features.shape[2]))
        embeds = torch.where(image.unsqueeze(-1), visual.to(text.dtype), text)
        order = torch.arange(input_ids.shape[1], device=input_ids.device).unsqueeze(0).expand_as(input_ids)
        if self.total is None or kept is None:
            return embeds, order
        # seen: image tokens up to and including this row; a text row after the image skips those that were dropped
        seen = torch.cumsum(image.long(), dim=1)
        inside = order - rank + torch.gather(kept, 1, rank)
        after = order + torch.where(seen > 0, self.total - kept.shape[1], 0)
        return embeds, torch.where(image, inside, after)
