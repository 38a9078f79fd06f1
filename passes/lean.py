"""Less work per visual token in a layer of the language model, with every token kept: a window for attention among
visual tokens, and an MLP of few neurons for them, chosen by what a few of them activate.
"""

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import Node

from tokcarve.passes import choose
from tokcarve.passes.geometry import even_positions
from tokcarve.passes.graph import TokenGraphs, input_node
from tokcarve.passes.stage import Stage
from tokcarve.passes.text_blocks import TextBlock
from tokcarve.passes.text_taps import Place

__all__ = ["HollowMask", "LeanBlock", "make_lean"]


class HollowMask(nn.Module):
    """The causal mask [1, 1, rows, rows] without what is `window` or more rows back among the visual tokens themselves:
    bool [batch, 1, rows, rows]."""

    def __init__(self, count: int, window: int) -> None:
        super().__init__()
        self.count, self.window = count, window

    def forward(self, causal: Tensor, start: Tensor) -> Tensor:
        order = torch.arange(causal.shape[-1], device=causal.device)
        place = order.unsqueeze(0) - start.unsqueeze(1)
        visual = (place >= 0) & (place < self.count)
        far = (order.unsqueeze(1) - order.unsqueeze(0)) >= self.window
        hidden = visual.unsqueeze(2) & visual.unsqueeze(1) & far.unsqueeze(0)
        return causal & ~hidden.unsqueeze(1)


class LeanBlock(nn.Module):
    """A decoder layer whose MLP gives visual rows `neurons` of its neurons; the rest as in TextBlock.

    The neurons are those with the largest mean activation, in absolute value, over `probes` visual rows spread evenly;
    they are chosen for each image.
    """

    def __init__(self, block: TextBlock, place: Place, neurons: int, probes: int) -> None:
        super().__init__()
        self.block, self.place, self.neurons = block, place, neurons
        self.probes = even_positions(probes, place.count)

    def forward(self, hidden: Tensor, mask: Tensor, cos: Tensor, sin: Tensor, start: Tensor) -> tuple[Tensor, ...]:
        attended, key, value = self.block.attend(hidden, mask, cos, sin)
        rows = self.block.fed(attended)
        order = torch.arange(hidden.shape[1], device=hidden.device).unsqueeze(0)
        place = order - start.unsqueeze(1)
        text = order[:, : hidden.shape[1] - self.place.count]
        text = torch.where(text < start.unsqueeze(1), text, text + self.place.count)
        told = self.block.mlp(choose.take(rows, text))
        seen = self._few(self.place.visual(rows, start))
        # row r of the sequence is row r of the text before the image, and r - count behind it
        of_text = torch.where(place < 0, order, order - self.place.count).clamp(0, told.shape[1] - 1)
        of_image = place.clamp(0, self.place.count - 1)
        inside = ((place >= 0) & (place < self.place.count)).unsqueeze(2)
        return attended + torch.where(inside, choose.take(seen, of_image), choose.take(told, of_text)), key, value

    def _few(self, rows: Tensor) -> Tensor:
        mlp: Any = self.block.mlp
        gate, up, down = mlp.gate_proj.weight.t(), mlp.up_proj.weight.t(), mlp.down_proj.weight.t()
        probes = rows[:, self.probes]
        activation = (mlp.act_fn(probes @ gate) * (probes @ up)).float().abs().mean(dim=1)
        index = choose.top_in_order(activation, self.neurons)
        # one gather from the layout that the text rows' products read, so that no weight is stored twice
        few = (torch.index_select(matrix, 1, index.flatten()).view(-1, *index.shape) for matrix in (gate, up))
        opened, raised = (rows @ matrix.transpose(0, 1) for matrix in few)
        lowered = torch.index_select(down, 0, index.flatten()).view(*index.shape, -1)
        fed: Tensor = (mlp.act_fn(opened) * raised) @ lowered
        return fed


def make_lean(module: fx.GraphModule, graphs: TokenGraphs, stage: Stage, place: Place) -> None:
    """Makes one layer of a language graph, which it changes, do less for visual tokens; see Stage."""
    index = int(stage.site.rpartition(".")[2])
    tag, start = f"t{index}", input_node(module, "visual_start")
    layer = next(node for node in module.graph.nodes if node.target == f"layers.{index}")
    arguments = list(layer.args)
    with module.graph.inserting_before(layer):
        if stage.window is not None and stage.window < place.count:
            module.add_submodule(f"select_mask_{tag}", HollowMask(place.count, stage.window))
            arguments[1] = module.graph.call_module(f"select_mask_{tag}", (arguments[1], start))
        if stage.neurons is not None and stage.neurons < graphs.geometry.text.mlp:
            probes = max(1, place.count // 10)
            lean = LeanBlock(graphs.parts.text_blocks[index], place, stage.neurons, probes)
            module.add_submodule(f"lean_layers_{index}", lean)
            made: Node = module.graph.call_module(f"lean_layers_{index}", (*arguments, start))
            layer.replace_all_uses_with(made)
            module.graph.erase_node(layer)
            return
    layer.args = tuple(arguments)
