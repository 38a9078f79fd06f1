"""The nodes of one stage in the language model: rows leave the prefill behind a layer, and decoding knows of it.

In the prefill graph the rows that stay are gathered, with their positions, and later layers get RoPE tables and a mask
of the new length. In the decode graph the caches of later layers are shorter: their mask counts fewer prompt rows, and
where positions were renumbered the new row's position falls by as many.
"""

import operator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx import Node

from tokcarve.passes import choose
from tokcarve.passes.errors import TapNotFound
from tokcarve.passes.graph import Read, Step, Thread, TokenGraphs, give, input_node, node_at, results
from tokcarve.passes.stage import Stage
from tokcarve.passes.text_blocks import TextBlock, causal_mask, decode_mask
from tokcarve.passes.text_taps import TEXT_TAPS, LastAttention, Place, attended
from tokcarve.passes.writer import Choose, Rule, Take, Writer

__all__ = ["LanguageCarver", "carve_decode", "watch_decode"]

_MASK, _COS, _SIN = 1, 2, 3  # places among the arguments of a layer


class _Rows(nn.Module):
    """Which rows stay: int64 [batch, rows - count + keep], all text, and of the visual tokens those at `index`."""

    def __init__(self, count: int, keep: int) -> None:
        super().__init__()
        self.count, self.keep = count, keep

    def forward(self, hidden: Tensor, start: Tensor, index: Tensor | None = None) -> Tensor:
        order = torch.arange(hidden.shape[1] - self.count + self.keep, device=hidden.device).unsqueeze(0)
        first = start.unsqueeze(1)
        rows = torch.where(order < first, order, order + (self.count - self.keep))
        if index is None:
            return rows
        place = order - first
        inside = (place >= 0) & (place < self.keep)
        return torch.where(inside, first + torch.gather(index, 1, place.clamp(0, self.keep - 1)), rows)


class _Visual(nn.Module):
    """Rows [batch, rows, hidden] -> the visual tokens among them [batch, count, hidden]."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place

    def forward(self, hidden: Tensor, start: Tensor) -> Tensor:
        return self.place.visual(hidden, start)


class _Merge(nn.Module):
    """The merged tokens [batch, keep, hidden] in place of the visual ones among `rows`, which are gathered already."""

    def forward(self, rows: Tensor, tokens: Tensor, start: Tensor, outcome: dict[str, Tensor]) -> Tensor:
        merged = choose.merge(
            tokens,
            outcome["weights"],
            sources=outcome.get("sources"),
            index=outcome["index"],
            own=outcome.get("own"),
        )
        place = torch.arange(rows.shape[1], device=rows.device).unsqueeze(0) - start.unsqueeze(1)
        inside = (place >= 0) & (place < merged.shape[1])
        placed = choose.take(merged, place.clamp(0, merged.shape[1] - 1))
        return torch.where(inside.unsqueeze(2), placed, rows)


class _Renumber(nn.Module):
    """Positions 0, 1, 2, ... of as many rows: int64 [batch, rows]."""

    def forward(self, rows: Tensor) -> Tensor:
        return torch.arange(rows.shape[1], device=rows.device).unsqueeze(0).expand(rows.shape[0], -1)


class _TakeCache(nn.Module):
    """Keys or values [batch, heads, rows, dim] at rows int64 [batch, n]."""

    def forward(self, cache: Tensor, rows: Tensor) -> Tensor:
        at = rows[:, None, :, None].expand(-1, cache.shape[1], -1, cache.shape[3])
        return torch.gather(cache, 2, at)


class LanguageCarver(Writer):
    """Writes one stage into a language graph, which it changes."""

    def __init__(self, module: fx.GraphModule, graphs: TokenGraphs, stage: Stage) -> None:
        super().__init__(module, stage)
        self.graphs = graphs
        self.layer = int(stage.site.split(".")[2])
        self.start = input_node(module, "visual_start")
        self.lengths = input_node(module, "prompt_lengths")

    def write(self, before: Thread) -> Thread:
        """The whole stage; what runs beside the tokens behind it."""
        self.before = before
        stage = self.stage
        outcome = None if stage.how == "exit" else self.rule(before)
        carry = {} if outcome is None else {name: self.item(outcome, name) for name in stage.carries}
        if stage.how == "observe":
            if stage.gives:
                assert outcome is not None
                read = Read(*results(self.module))
                made = {name: self.item(outcome, name) for name in stage.gives}
                give(self.module, *read[:4], {**read.given, **made})
            return replace(before, carry={k: v.name for k, v in carry.items()} or before.carry)
        index: Node | None = None
        if outcome is not None and stage.how == "choose":
            index = self.add("choose", Choose(stage.keep), self.item(outcome, "score"))
            carry = {name: self.add(f"carry_{name}", Take(0), node, index) for name, node in carry.items()}
        elif outcome is not None:
            index = self.item(outcome, "index")
        known = (index,) if index is not None else ()
        rows = self.add("rows", _Rows(before.count, stage.keep), self.site, self.start, *known)
        tokens = self.add("take", Take(0), self.site, rows)
        if outcome is not None and stage.how == "merge":
            place = Place(count=before.count, dropped=before.dropped)
            visual = self.add("visual", _Visual(place), self.site, self.start)
            tokens = self.add("merge", _Merge(), tokens, visual, self.start, outcome)
        for user in self.users:
            user.replace_input_with(self.site, tokens)
        positions = self._place_rows(tokens, rows)
        original = index
        if index is not None and before.index is not None:
            original = self.add("index", Take(0), self.named(before.index), index)
        self._give_out(rows, original)
        dropped = before.dropped + before.count - stage.keep
        return Thread(
            count=stage.keep,
            index=None if original is None else original.name,
            dropped=dropped,
            shift=dropped + self._gap() if stage.positions == "renumbered" else before.shift,
            positions=positions.name,
            carry={name: node.name for name, node in carry.items()},
        )

    def tap(self, name: str) -> Node:
        """The node that gives what the stage reads under `name`."""
        tap, parts = TEXT_TAPS[name], self.graphs.parts
        if tap.source == "input":
            return input_node(self.module, name)
        assert tap.made_of is not None
        hidden, cos, sin = self.site, *(_given(self.site.args[0], n) for n in (_COS, _SIN))
        place = Place(count=self.before.count, dropped=self.before.dropped)
        if tap.source == "layer":
            hidden = _given(self.site.args[0], 0)
        elif tap.source == "entry":
            hidden, cos, sin = (_given(_layers(self.module)[0], n) for n in (0, _COS, _SIN))
            place = Place(count=self.before.count + self.before.dropped, dropped=0)
        block = self._next_block() if tap.source == "next" else parts.text_blocks[self.layer]
        return self.add(name, tap.made_of(block, place, parts.norm), hidden, cos, sin, self.start, self.lengths)

    def _gap(self) -> int:
        """How much higher the positions of text are than its rows when it enters."""
        total = self.graphs.embedding.total
        return 0 if total is None else total - self.before.count - self.before.dropped

    def _next_block(self) -> TextBlock:
        blocks = self.graphs.parts.text_blocks
        if self.layer + 1 >= len(blocks):
            raise TapNotFound(f"{self.stage.site} is the language model's last layer; there is none behind it to read")
        return blocks[self.layer + 1]

    def _place_rows(self, tokens: Node, rows: Node) -> Node:
        """Positions of the rows that stay; later layers get RoPE tables and a mask of their length."""
        positions = self.named(self.before.positions)
        if self.stage.positions == "renumbered":
            positions = self.add("positions", _Renumber(), tokens)
        else:
            positions = self.add("positions", Take(0), positions, rows)
        with self.module.graph.inserting_after(self.cursor):
            rotary = self.cursor = self.module.graph.call_module("rotary", (tokens, positions))
        cos, sin = self.item(rotary, 0), self.item(rotary, 1)
        with self.module.graph.inserting_after(self.cursor):
            window = self.graphs.geometry.text.sliding_window
            mask = self.cursor = self.module.graph.call_function(causal_mask, (tokens, window))
        for layer in _layers(self.module)[self.layer + 1 :]:
            layer.args = (layer.args[0], mask, cos, sin)
        return positions

    def _give_out(self, rows: Node, index: Node | None) -> None:
        read = Read(*results(self.module))
        keys, values, kept = read.keys, read.values, read.kept
        if self.stage.cuts_cache:
            self.cursor = self.module.graph.output_node().prev
            keys, values = (self._cut(what, of, rows) for what, of in (("keys", keys), ("values", values)))
        if index is not None:
            kept = {**kept, self.stage.site: index}  # type: ignore[dict-item]
        give(self.module, read.logits, keys, values, kept, read.given)

    def _cut(self, what: str, caches: list[Any], rows: Node) -> list[Any]:
        cut = [self.add(f"{what}{i}", _TakeCache(), one, rows) for i, one in enumerate(caches[: self.layer + 1])]
        return cut + caches[self.layer + 1 :]


def _given(layer: Any, argument: int) -> Node:
    """The node that a layer takes as that argument."""
    given = layer.args[argument]
    assert isinstance(given, Node)
    return given


def _layers(module: fx.GraphModule) -> list[Node]:
    return [node for node in module.graph.nodes if node.op == "call_module" and str(node.target).startswith("layers.")]


class _StepAttention(nn.Module):
    """What the new row attends to among the visual tokens that are still cached: [batch, heads, n]."""

    def __init__(self, block: TextBlock, place: Place) -> None:
        super().__init__()
        self.tap = LastAttention(block, place, nn.Identity())

    def forward(self, hidden: Tensor, mask: Tensor, cos: Tensor, sin: Tensor, past: Tensor, start: Tensor) -> Tensor:
        keys = torch.cat([past, self.tap.keys(hidden, cos, sin)], dim=2).float()
        query = self.tap.queries(hidden, cos, sin, torch.zeros_like(start).unsqueeze(1))
        return self.tap.columns(attended(query, keys, mask).squeeze(2), start)


def watch_decode(module: fx.GraphModule, graphs: TokenGraphs, stage: Stage, place: Thread) -> None:
    """Makes a decode graph, which it changes, give what `stage` observes of every new row."""
    layer = _layers(module)[int(stage.site.split(".")[2])]
    hidden, mask, cos, sin, past = layer.args[:5]
    start = input_node(module, "visual_start")
    name = stage.site.replace("language.layers.", "t")
    block = graphs.parts.text_blocks[int(stage.site.split(".")[2])]
    tap = _StepAttention(block, Place(count=place.count, dropped=place.dropped))
    with module.graph.inserting_before(layer):
        module.add_submodule(f"select_last_attention_{name}", tap)
        seen = module.graph.call_module(f"select_last_attention_{name}", (hidden, mask, cos, sin, past, start))
        module.add_submodule(f"select_rule_{name}", Rule(stage.rule))
        outcome = module.graph.call_module(f"select_rule_{name}", ({"last_attention": seen}, {}))
        made = {one: module.graph.call_function(operator.getitem, (outcome, one)) for one in stage.gives}
    step = Step(*results(module))
    give(module, *step[:3], {**step.given, **made})


def carve_decode(module: fx.GraphModule, graphs: TokenGraphs, stage: Stage, after: Thread) -> None:
    """Tells a decode graph, which it changes, how many prompt rows its layers still hold behind `stage`."""
    layers = _layers(module)
    behind = int(stage.site.split(".")[2]) + 1
    ids, *counts = (input_node(module, name) for name in ("position_ids", "prompt_lengths", "step", "capacity"))
    window, graph = graphs.geometry.text.sliding_window, module.graph
    for first, group in ((0, layers[:behind]), (behind, layers[behind:])):
        if not group or (first == 0 and not stage.cuts_cache):
            continue
        past = group[0].args[4]
        with graph.inserting_before(group[0]):
            mask = graph.call_function(decode_mask, (past, *counts, after.dropped, window))
            tables = group[0].args[_COS : _SIN + 1]
            if stage.positions == "renumbered" and first:
                hidden = node_at(module, "embed_tokens")
                rotary = graph.call_module("rotary", (hidden, graph.call_function(operator.sub, (ids, after.shift))))
                tables = tuple(graph.call_function(operator.getitem, (rotary, i)) for i in range(2))
        for layer in group:
            layer.args = (layer.args[0], mask, *tables, *layer.args[4:])
