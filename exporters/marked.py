"""Graphs for a runtime that adds tokens around an image and has one length for the caches of all layers.

Embeddings carry columns behind the hidden ones: a mark (1 visual, 0 text, -1 void), and what vision hands to the
language model. So the language model knows by itself where the image is, and whether there is one.

void   the tokens around an image that the runtime insists on, and that the model never saw. The embedding graph moves
       them to the front. No row attends to them, positions do not count them, and their keys are written as zeros:
       that is how a later run knows them.
pruned Layers behind a cut store as many zeros in front of their rows as rows were dropped: all layers keep one length.
"""

from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor, nn
from torch.fx import Node

from tokcarve.exporters.columns import Columns
from tokcarve.exporters.forked import Forked
from tokcarve.exporters.growing import ROWS, TOKENS, growing_mask, merged, text_graph
from tokcarve.exporters.modules import FaceGraph, Shapes, final_kept, last_row_only
from tokcarve.passes import choose
from tokcarve.passes.graph import Read, Seen, TokenGraphs, thread
from tokcarve.passes.text_taps import Place

__all__ = [
    "HEIGHT",
    "VOID",
    "WIDTH",
    "marked_embedding",
    "marked_text",
    "marked_vision",
]

VOID = 2
"""Rows that the runtime adds around an image."""
HEIGHT, WIDTH = "height", "width"
"""Names of open dimensions: sides of an image in pixels."""
# of examples to trace with: all different, and none is 0 or 1, which torch would take for a constant
_EXAMPLE_SIDES, _EXAMPLE_TEXT, _EXAMPLE_TOKENS = (37, 45), 5, 3


class _Vision(nn.Module):
    """One frame of raw pixels [1, 1, 3, height, width] -> visual rows [tokens, wide] with their columns."""

    def __init__(self, graphs: TokenGraphs, wide: Columns, prepare: nn.Module) -> None:
        super().__init__()
        self.prepare, self.vision = prepare, graphs.vision
        self.total, self.wide = graphs.geometry.total, wide

    def forward(self, pixel_values: Tensor) -> Tensor:
        seen = Seen(*self.vision(self.prepare(pixel_values[:, 0])))
        return self.wide.join(seen, final_kept(seen.kept, 1, self.total)).squeeze(0)


def marked_vision(graphs: TokenGraphs, wide: Columns, prepare: nn.Module) -> FaceGraph:
    """pixel_values [1, 1, 3, height, width], whole numbers 0..255 of an image of any size, -> image_features
    [tokens, width of `wide`]; `prepare` makes of [1, 3, height, width] what the vision tower reads."""
    return FaceGraph(
        module=_Vision(graphs, wide, prepare),
        inputs=(torch.zeros(1, 1, 3, *_EXAMPLE_SIDES),),
        input_names=("pixel_values",),
        output_names=("image_features",),
        opens={"pixel_values": {3: HEIGHT, 4: WIDTH}},
    )


class _Embedding(nn.Module):
    """Ids [1, rows] and visual rows -> embeddings, void rows first, then all others in their order.

    Where there are no visual rows, what would stand for an image is a token as any other: a model may have said it.
    """

    def __init__(self, graphs: TokenGraphs, wide: Columns, image: tuple[int, ...], void: tuple[int, ...]) -> None:
        super().__init__()
        self.tokens, self.vocab = graphs.parts.embed_tokens, graphs.geometry.text.vocab
        self.wide, self.image, self.void = wide, image, void

    def forward(self, input_ids: Tensor, image_features: Tensor) -> Tensor:
        seen = torch.ones_like(image_features[:, 0]).sum() > 0
        image = _among(input_ids, self.image) & seen
        void = (_among(input_ids, self.void) & seen) | ((input_ids >= self.vocab) & ~image)
        text = self.tokens(torch.where(image | void, 0, input_ids))
        mark = torch.where(void, -1.0, 0.0).unsqueeze(2)
        rest = torch.zeros_like(text[:, :, :1]).expand(-1, -1, self.wide.width - self.wide.hidden - 1)
        rows = merged(torch.cat([text, mark, rest], dim=2), image, image_features.unsqueeze(0))
        order = torch.arange(input_ids.shape[1], device=input_ids.device)
        # where each of the others stands: behind as many rows as have at most as many others up to them
        others = torch.cumsum((~void).long(), dim=1)
        place = order.unsqueeze(0) - void.long().sum(dim=1, keepdim=True)
        old = (others.unsqueeze(1) <= place.unsqueeze(2)).long().sum(dim=2)
        first = torch.where(void, order.unsqueeze(0), 0).amax(dim=1, keepdim=True)
        return choose.take(rows, torch.where(place < 0, first, old))


def _among(ids: Tensor, wanted: tuple[int, ...]) -> Tensor:
    found = ids == wanted[0]
    for one in wanted[1:]:
        found = found | (ids == one)
    return found


def marked_embedding(graphs: TokenGraphs, wide: Columns, *, image: tuple[int, ...], void: tuple[int, ...]) -> FaceGraph:
    """input_ids int64 [1, rows], image_features [tokens, width] -> inputs_embeds [1, rows, width]. Ids in `image` stand
    for visual rows, ids in `void` for rows that are not there."""
    return FaceGraph(
        module=_Embedding(graphs, wide, image, void),
        inputs=(torch.zeros(1, _EXAMPLE_TEXT, dtype=torch.int64), torch.zeros(_EXAMPLE_TOKENS, wide.width)),
        input_names=("input_ids", "image_features"),
        output_names=("inputs_embeds",),
        opens={"input_ids": {1: ROWS}, "image_features": {0: TOKENS}, "inputs_embeds": {1: ROWS}},
    )


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Layers from `first` on: `dropped` rows of a pruned prompt are not in their caches, and positions of what comes
    later are lower by `shift`."""

    first: int
    dropped: int
    shift: int


def _groups(graphs: TokenGraphs) -> list[_Group]:
    """Runs of layers of one kind, as the decode graph has them."""
    layers = [node for node in graphs.decode.graph.nodes if str(node.target).startswith("layers.")]
    kinds = enumerate((_number(_argument(layer, 1), 4), _shift(layer)) for layer in layers)
    return [
        _Group(first=next(run)[0], dropped=dropped, shift=shift)
        for (dropped, shift), run in groupby(kinds, key=lambda one: one[1])
    ]


def _argument(node: Node, at: int) -> Node:
    found = node.args[at]
    assert isinstance(found, Node)
    return found


def _number(node: Node, at: int) -> int:
    found = node.args[at]
    assert isinstance(found, int)
    return found


def _shift(layer: Node) -> int:
    positions = _argument(_argument(_argument(layer, 2), 0), 1)
    return 0 if positions.op == "placeholder" else _number(positions, 1)


class _Text(nn.Module):
    """As `growing_text`, for rows with columns, behind a cache that a pruned prompt may have left."""

    def __init__(self, graphs: TokenGraphs, wide: Columns) -> None:
        super().__init__()
        self.layers = nn.ModuleList(graphs.parts.text_blocks)
        self.rotary, self.norm, self.head = graphs.parts.rotary, graphs.parts.norm, graphs.parts.head
        self.wide, self.gap, self.groups = wide, _gap(graphs), _groups(graphs)

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        hidden, mark, places, _ = self.wide.split(inputs_embeds)
        new, zeros = mark >= 0, (~_real(past[0])).long().sum(dim=1, keepdim=True)
        void = zeros.clamp(max=self.wide.void) + (~new).long().sum(dim=1, keepdim=True)
        entered = position_ids - void + (zeros > 0).long() * self.gap + _skipped(mark, places, self.gap)
        present, starts = list[Tensor](), {group.first: group for group in self.groups}
        for at, layer in enumerate(self.layers):
            key, value = past[2 * at], past[2 * at + 1]
            if at in starts:
                real = _real(key)
                attended = torch.cat([real, new], dim=1).unsqueeze(1).unsqueeze(1)
                mask = growing_mask(hidden, attention_mask, key) & attended
                cos, sin = self.rotary(hidden, _lowered(entered, starts[at], real, self.wide.void))
            hidden, new_key, new_value = layer(hidden, mask, cos, sin, key, value)
            if at in starts:
                new_key = new_key * new.unsqueeze(1).unsqueeze(3).float()
            present += [torch.cat([key, new_key], dim=2), torch.cat([value, new_value], dim=2)]
        return self.head(self.norm(hidden[:, -1:])), *present


def _gap(graphs: TokenGraphs) -> int:
    """By how much positions behind an image are higher than its rows, where rows keep the positions they had in it."""
    total = graphs.embedding.total
    return 0 if total is None else total - thread(graphs.vision).count


def _skipped(mark: Tensor, places: Tensor, gap: int) -> Tensor:
    """How many positions rows are ahead of their order, for what was dropped of an image among them."""
    if not gap:
        return torch.zeros_like(places)
    seen = torch.cumsum((mark > 0).long(), dim=1)
    return torch.where(mark > 0, places - (seen - 1), torch.where(seen > 0, gap, 0))


def _lowered(entered: Tensor, group: _Group, real: Tensor, void: int) -> Tensor:
    """Positions in a group of layers, which renumber what a pruned prompt left."""
    if not group.shift:
        return entered
    pruned = (~real).long().sum(dim=1, keepdim=True) >= void + group.dropped
    return entered - pruned.long() * group.shift


def _real(key: Tensor) -> Tensor:
    """Which slots of a cache hold a row: bool [batch, cached]."""
    return key.abs().amax(dim=(1, 3)) > 0


class _LastRow(nn.Module):
    def forward(self, rows: Tensor, prompt_lengths: Tensor) -> Tensor:
        return rows[:, -1:]


class _Prompt(nn.Module):
    """A prompt with an image at the start of a conversation, through the carved language graph."""

    def __init__(self, graphs: TokenGraphs, wide: Columns) -> None:
        super().__init__()
        self.language, self.names = last_row_only(graphs.language, _LastRow()), graphs.language_inputs
        self.wide, self.gap, self.place = wide, _gap(graphs), Place(count=thread(graphs.vision).count, dropped=0)

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        hidden, mark, places, handed = self.wide.split(inputs_embeds[:, self.wide.void :])
        start, lengths = choose.best(mark), torch.ones_like(mark).sum(dim=1).long()
        given = {"visual_start": start, **{name: self.place.visual(one, start) for name, one in handed.items()}}
        entered = position_ids[:, : mark.shape[1]] + _skipped(mark, places, self.gap)
        read = Read(*self.language(hidden, entered, lengths, *(given[name] for name in self.names)))
        rows = inputs_embeds.shape[1]
        cache = (one for pair in zip(read.keys, read.values, strict=True) for one in pair)
        return read.logits, *(nn.functional.pad(one, (0, 0, rows - one.shape[2], 0)) for one in cache)


class _Prompted(nn.Module):
    """Whether a run reads a prompt with an image behind an empty cache: bool []."""

    def __init__(self, wide: Columns, count: int) -> None:
        super().__init__()
        self.wide, self.count = wide, count

    def forward(
        self, inputs_embeds: Tensor, attention_mask: Tensor, position_ids: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        mark = inputs_embeds[0, :, self.wide.hidden]
        cached = torch.ones_like(past[0][0, 0, :, 0]).sum()
        return ((cached == 0) & ((mark > 0).sum() == self.count) & ((mark < 0).sum() == self.wide.void),)


def marked_text(graphs: TokenGraphs, wide: Columns, sizes: Shapes) -> FaceGraph:
    """The language model with the ends of `growing_text`, rows as wide as `wide`, one prompt at a time.

    Where a method drops tokens in it, a prompt with an image behind an empty cache is pruned, and what is cached has
    its zeros in front; everything else runs as in the unpruned model.
    """
    plain = text_graph(graphs, _Text(graphs, wide), batch=1, width=wide.width)
    if not graphs.language_inputs:
        return plain
    pruned = text_graph(graphs, _Prompt(graphs, wide), batch=1, width=wide.width, rows=wide.void + sizes.prompt)
    return Forked(
        module=_Prompted(wide, thread(graphs.vision).count),
        inputs=plain.inputs,
        input_names=plain.input_names,
        output_names=plain.output_names,
        opens=plain.opens,
        then=pruned,
        otherwise=plain,
    )
