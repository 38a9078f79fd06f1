"""The token graph: `torch.fx` at block granularity, small enough to print, rewritten without weights.

vision      pixel_values -> embeddings -> layers.0 ... layers.n -> connector -> image_features
language    inputs_embeds, position_ids -> rotary -> layers.0 ... layers.m -> norm -> head -> logits, KV per layer
decode      the language graph with KV in and out, one row; every layer's cache has the length that its stage left
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx import Node

from tokcarve.passes import choose
from tokcarve.passes.blocks import Embedding, PatchEmbedding, VisionBlock
from tokcarve.passes.errors import MethodError
from tokcarve.passes.geometry import Geometry
from tokcarve.passes.text_blocks import Rotary, TextBlock

__all__ = [
    "Parts",
    "Read",
    "Seen",
    "Step",
    "Thread",
    "TokenGraphs",
    "all_kept",
    "clone",
    "drop_prefix",
    "give",
    "input_node",
    "node_at",
    "results",
    "thread",
    "visual_start",
]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """A model cut into its own blocks: what a family adapter hands over, and all that the graphs are made of."""

    patches: PatchEmbedding
    vision_blocks: tuple[VisionBlock, ...]
    vision_next: VisionBlock | None  # the layer behind the last one used, which never runs
    connector: nn.Module
    embed_tokens: nn.Module
    text_blocks: tuple[TextBlock, ...]
    rotary: Rotary
    norm: nn.Module
    head: nn.Module


@dataclass(frozen=True, kw_only=True)
class Thread:
    """What runs beside the tokens through one graph, as node names.

    index: original token ids [batch, n] of the tokens at this point; carry: a method's own tensors [batch, n, ...];
    alive: bool [batch, n], present while tokens are masked instead of removed; count: n; biased: whether attention
    counts the tokens by their size. In the language graph also dropped: rows fewer than entered; shift: how much lower
    the positions of text are than when they entered; positions: position ids int64 [batch, rows].
    """

    count: int
    dropped: int = 0
    shift: int = 0
    positions: str | None = None
    index: str | None = None
    alive: str | None = None
    biased: bool = False
    carry: Mapping[str, str] = field(default_factory=dict)


class Seen(NamedTuple):
    """What the vision graph gives: features [batch, keep, hidden]; kept: original patch ids int64 [batch, keep] by
    site; handed: tensors [batch, keep, ...] by name for stages in the language model."""

    features: Tensor
    kept: dict[str, Tensor]
    handed: dict[str, Tensor] = {}


class Read(NamedTuple):
    """What the language graph gives: logits [batch, rows left, vocab], keys and values [batch, kv_heads, rows stored,
    dim] by layer; kept: ids int64 [batch, keep] of the visual tokens, counted as they entered, by site; given: tensors
    by name that the method hands out."""

    logits: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    kept: dict[str, Tensor] = {}
    given: dict[str, Tensor] = {}


class Step(NamedTuple):
    """A decoded row: logits [batch, 1, vocab], the new row's keys and values by layer, given as in Read."""

    logits: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    given: dict[str, Tensor] = {}


def all_kept(seen: Seen, read: Read) -> dict[str, Tensor]:
    """Original patch ids int64 [batch, keep] behind every site of both graphs, in order."""
    kept = dict(seen.kept)
    entered = list(kept.values())[-1] if kept else None
    for site, index in read.kept.items():
        kept[site] = index if entered is None else choose.take(entered, index)
    return kept


def visual_start(input_ids: Tensor, image_token_id: int) -> Tensor:
    """The row of each prompt's first visual token, int64 [batch], of ids int64 [batch, rows]."""
    return choose.best((input_ids == image_token_id).float())


@dataclass(frozen=True, kw_only=True)
class TokenGraphs:
    """One model as graphs that share its weights.

    vision(pixel_values) -> Seen; a method that reads the text makes it vision(pixel_values, input_ids, prompt_lengths)
    language(inputs_embeds, position_ids, prompt_lengths) -> Read; stages in the language model add `visual_start` int64
        [batch] and what they read of the vision graph or the caller, see `language_inputs`
    decode(input_ids, position_ids, prompt_lengths, step, past_keys, past_values, capacity) -> Step; position_ids and
        prompt_lengths count as the prompt entered, whatever was dropped since; `visual_start` comes last where `gives`
    embedding(input_ids, image_features, kept) -> (inputs_embeds, position_ids)
    """

    geometry: Geometry
    parts: Parts
    vision: fx.GraphModule
    language: fx.GraphModule
    decode: fx.GraphModule
    embedding: Embedding

    @property
    def reads_text(self) -> bool:
        """Whether the vision graph takes the prompt: right-padded ids int64 [batch, rows], real rows int64 [batch]."""
        return len(_inputs(self.vision)) > 1

    @property
    def language_inputs(self) -> tuple[str, ...]:
        """What the language graph takes beyond embeddings, positions and lengths, by name."""
        return tuple(str(node.target) for node in _inputs(self.language)[3:])

    @property
    def language_sites(self) -> tuple[str, ...]:
        """The sites of the language graph behind which it says what was kept."""
        return tuple(Read(*results(self.language)).kept)

    @property
    def gives(self) -> tuple[str, ...]:
        """What the language and decode graphs give to whoever runs them, by name."""
        return tuple(Read(*results(self.language)).given)

    @property
    def asks(self) -> tuple[str, ...]:
        """What the language graph expects of whoever runs it, by name."""
        return tuple(name for name in self.language_inputs if name not in ("visual_start", *self.handed))

    @property
    def handed(self) -> tuple[str, ...]:
        """What the vision graph gives to stages in the language model, by name."""
        return tuple(Seen(*results(self.vision)).handed)

    def see(self, pixel_values: Tensor, input_ids: Tensor | None = None, prompt_lengths: Tensor | None = None) -> Seen:
        """The vision graph on what it takes of these: any number of image tokens may stand in the prompt."""
        if not self.reads_text:
            return Seen(*self.vision(pixel_values))
        if input_ids is None or prompt_lengths is None:
            raise MethodError("this method reads the question, so pixels alone are not enough; give the prompt too")
        return Seen(*self.vision(pixel_values, input_ids, prompt_lengths))

    def read(
        self, input_ids: Tensor, seen: Seen, prompt_lengths: Tensor, given: Mapping[str, Tensor] | None = None
    ) -> tuple[Read, Tensor]:
        """The language graph on right-padded prompts [batch, rows] that hold what was seen; -> (Read, the position ids
        int64 [batch, rows] with which the rows entered). `given`: inputs that a method expects from the caller."""
        last = list(seen.kept.values())[-1] if seen.kept else None
        embeds, positions = self.embedding(input_ids, seen.features, last)
        start = visual_start(input_ids, self.geometry.image_token_id)
        named = {"visual_start": start, **seen.handed, **(given or {})}
        missing = [name for name in self.language_inputs if name not in named]
        if missing:
            raise MethodError(f"this method reads {missing[0]!r} of the caller, and it was not given")
        more = (named[name] for name in self.language_inputs)
        return Read(*self.language(embeds, positions, prompt_lengths, *more)), positions

    def step(
        self,
        latest: Tensor,
        positions: Tensor,
        lengths: Tensor,
        step: int,
        past: tuple[list[Tensor], list[Tensor]],
        capacity: int,
        start: Tensor,
    ) -> Step:
        """The decode graph on the latest token [batch, 1] of prompts whose visual tokens begin at `start` [batch]."""
        more = (start,) if self.gives else ()
        written = torch.tensor([step], device=latest.device)
        return Step(*self.decode(latest, positions, lengths, written, *past, capacity, *more))


def drop_prefix(hidden: Tensor, prefix: int) -> Tensor:
    """Rows [batch, prefix + n, hidden] without the first `prefix`: the patches alone."""
    return hidden[:, prefix:]


def clone(module: fx.GraphModule) -> fx.GraphModule:
    """A graph that may be rewritten: nodes copied, weights shared, `module` left as it is."""
    copied = fx.GraphModule(module, copy.deepcopy(module.graph), type(module).__name__)
    copied.meta.update(module.meta)
    return copied


def thread(module: fx.GraphModule) -> Thread:
    """What runs beside the tokens of a vision or language graph, as of its last stage."""
    found = module.meta["thread"]
    assert isinstance(found, Thread)
    return found


def results(module: fx.GraphModule) -> Any:
    """What a graph gives, as nodes in the tuples, lists and dicts in which it gives them."""
    return module.graph.output_node().args[0]


def give(module: fx.GraphModule, *made: Any) -> None:
    """Makes `made`, nodes as in `results`, what a graph gives."""
    module.graph.output_node().args = (made,)


def input_node(module: fx.GraphModule, name: str) -> Node:
    """The input of that name; made, behind the others, where the graph does not take it yet."""
    inputs = _inputs(module)
    for node in inputs:
        if node.target == name:
            return node
    with module.graph.inserting_after(inputs[-1]):
        made: Node = module.graph.placeholder(name)
    return made


def _inputs(module: fx.GraphModule) -> list[Node]:
    return [node for node in module.graph.nodes if node.op == "placeholder"]


def node_at(module: fx.GraphModule, name: str) -> Node:
    """The node called `name`, or what carries the meta entry site == `name`."""
    nodes: list[Node] = list(module.graph.nodes)
    for node in nodes:
        if node.name == name or node.meta.get("site") == name:
            return node
    raise KeyError(name)
