"""The nodes of one stage, written into a vision graph behind its site."""

from dataclasses import replace

import torch
from torch import Tensor, fx, nn
from torch.fx import Node

from tokcarve.passes import choose
from tokcarve.passes.blocks import Attend, Feed, VisionBlock
from tokcarve.passes.errors import TapNotFound
from tokcarve.passes.graph import Thread, TokenGraphs, drop_prefix, give, input_node, results
from tokcarve.passes.stage import Stage
from tokcarve.passes.taps import TAPS, Tokens
from tokcarve.passes.writer import Choose, Take, Writer

__all__ = ["Carver"]

_PROMPT = ("input_ids", "prompt_lengths")


class _Merge(nn.Module):
    def __init__(self, prefix: int, first: int) -> None:
        super().__init__()
        self.prefix, self.first = prefix, first

    def forward(self, rows: Tensor, outcome: dict[str, Tensor]) -> Tensor:
        index, sources = (outcome[name] - self.first if name in outcome else None for name in ("index", "sources"))
        return choose.merge(rows, outcome["weights"], self.prefix, sources=sources, index=index, own=outcome.get("own"))


class _Alive(nn.Module):
    def forward(self, score: Tensor, count: Tensor, alive: Tensor | None = None) -> Tensor:
        return choose.alive_after(score, count, torch.ones_like(score, dtype=torch.bool) if alive is None else alive)


class _Mask(nn.Module):
    """[batch, tokens] -> the mask of later blocks: booleans, or numbers in the dtype of `rows`."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, keys: Tensor, rows: Tensor) -> Tensor:
        boolean = keys.dtype == torch.bool
        before = keys.new_ones(keys.shape[0], self.prefix) if boolean else keys.new_zeros(keys.shape[0], self.prefix)
        mask = torch.cat([before, keys], dim=1) if self.prefix else keys
        return (mask if boolean else mask.to(rows.dtype))[:, None, None, :]


class Carver(Writer):
    """Writes one stage into a vision graph, which it changes."""

    def __init__(self, module: fx.GraphModule, graphs: TokenGraphs, stage: Stage) -> None:
        super().__init__(module, stage)
        self.graphs = graphs
        self.prefix = graphs.geometry.vision.prefix if stage.site.startswith("vision.") else 0

    def write(self, before: Thread) -> Thread:
        """The whole stage; what runs beside the tokens behind it."""
        outcome = self.rule(before)
        carry = {name: self.item(outcome, name) for name in self.stage.carries}
        how = self.stage.how
        if how == "observe":
            return replace(before, carry={k: v.name for k, v in carry.items()})
        if how == "mask":
            return self._masked(before, outcome, carry)
        if how == "choose":
            return self._chosen(before, outcome, carry)
        return self._merged(before, outcome, carry)

    def tap(self, name: str) -> Node:
        """The node that gives what the stage reads under `name`."""
        tap = TAPS[name]
        if tap.source == "site":
            return self.add(name, Tokens(self.prefix), self.site)
        if tap.source == "pixels":
            return input_node(self.module, "pixel_values")
        if tap.source == "prompt":
            ids, lengths = (input_node(self.module, one) for one in _PROMPT)
            parts, image = self.graphs.parts, self.graphs.geometry.image_token_id
            return self.add(name, tap.made_of(parts.embed_tokens, image), ids, lengths)
        if tap.source == "next":
            return self.add(name, tap.made_of(self._next_block()), self.site)
        return self.add(name, tap.made_of(self._block()), *self.site.args)

    def _block(self) -> VisionBlock:
        found = self.module.get_submodule(str(self.site.target))
        if isinstance(found, Feed):
            raise TapNotFound(f"attention of {self.stage.site} is read at {self.stage.site}.attention in this graph")
        block = found.block if isinstance(found, Attend) else found
        assert isinstance(block, VisionBlock)
        return block

    def _next_block(self) -> VisionBlock:
        layer = int(self.stage.site.split(".")[2]) + 1
        blocks = (*self.graphs.parts.vision_blocks, self.graphs.parts.vision_next)
        found = blocks[layer]
        if found is None:
            raise TapNotFound(f"{self.stage.site} is the tower's last layer; there is none behind it to read")
        return found

    def _masked(self, before: Thread, outcome: Node, carry: dict[str, Node]) -> Thread:
        score, count = self.item(outcome, "score"), self.item(outcome, "count")
        alive = self.add("alive", _Alive(), score, count, self.named(before.alive))
        self._mask_later(self.add("mask", _Mask(self.prefix), alive, self.site))
        return replace(before, alive=alive.name, carry={k: v.name for k, v in carry.items()})

    def _chosen(self, before: Thread, outcome: Node, carry: dict[str, Node]) -> Thread:
        score = self.item(outcome, "score")
        index = chosen = self.add("choose", Choose(self.stage.keep), score, self.named(before.alive))
        tokens = self.add("take", Take(self.prefix), self.site, chosen)
        if before.index is not None:
            index = self.add("index", Take(0), self.named(before.index), chosen)
        kept = {name: self.add(f"carry_{name}", Take(0), node, chosen).name for name, node in carry.items()}
        self._rewire(tokens, index)
        if before.alive is not None:
            self._mask_later(None)
        return Thread(count=self.stage.keep, index=index.name, carry=kept)

    def _merged(self, before: Thread, outcome: Node, carry: dict[str, Node]) -> Thread:
        index = self.item(outcome, "index")
        prefix = 0 if self.stage.takes_cls else self.prefix
        tokens = self.add("merge", _Merge(prefix, prefix - self.prefix), self.site, outcome)
        if before.index is not None:
            index = self.add("index", Take(0), self.named(before.index), index)
        self._rewire(tokens, index)
        if self.stage.biases:
            self._mask_later(self.add("bias", _Mask(self.prefix), self.item(outcome, "bias"), tokens))
        elif before.alive is not None:
            self._mask_later(None)
        kept = {k: v.name for k, v in carry.items()}
        return Thread(count=self.stage.keep, index=index.name, biased=self.stage.biases, carry=kept)

    def _mask_later(self, mask: Node | None) -> None:
        nodes = list(self.module.graph.nodes)
        for node in nodes[nodes.index(self.site) + 1 :]:
            if str(node.meta.get("site", "")).startswith("vision.layers."):
                if not isinstance(self.module.get_submodule(str(node.target)), Feed):
                    node.args = (node.args[0],) if mask is None else (node.args[0], mask)

    def _rewire(self, tokens: Node, index: Node) -> None:
        for user in self.users:
            if self.stage.takes_cls and user.target is drop_prefix:
                user.replace_all_uses_with(tokens)
                self.module.graph.erase_node(user)
            else:
                user.replace_input_with(self.site, tokens)
        features, kept = results(self.module)
        give(self.module, tokens if features is self.site else features, {**kept, self.stage.site: index})
