"""The table of invariants turns red for every way a graph can be wrong, and names the place."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from models import TOTAL, build
from torch import Tensor, fx, nn

from tokcarve.passes import families
from tokcarve.passes.errors import InvariantError
from tokcarve.passes.graph import TokenGraphs, clone, node_at
from tokcarve.passes.insert import RewriteResult, rewrite
from tokcarve.passes.invariants import check_captured, check_carved, rows_after
from tokcarve.passes.methods.flowcut import FlowCut
from tokcarve.passes.methods.vtc_cls import VtcCls
from tokcarve.passes.stage import Frozen

COUNTS = {"vision.layers.1": 40}


@pytest.fixture(scope="module")
def graphs() -> TokenGraphs:
    return families.capture(build())


@pytest.fixture(scope="module")
def carved(graphs: TokenGraphs) -> RewriteResult:
    return rewrite(graphs, FlowCut().stages(graphs.geometry, 8, Frozen(counts=COUNTS)))


def mutated(graphs: TokenGraphs, change: Callable[[fx.GraphModule], None]) -> TokenGraphs:
    module = clone(graphs.vision)
    change(module)
    module.graph.lint()
    module.recompile()
    return replace(graphs, vision=module)


class _Changed(nn.Module):
    """What `inner` gives, through `change`."""

    def __init__(self, inner: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.change = inner, change

    def forward(self, *args: Tensor) -> Tensor:
        return self.change(self.inner(*args))


def wrap(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[fx.GraphModule], None]:
    def mutate(module: fx.GraphModule) -> None:
        module.set_submodule(name, _Changed(module.get_submodule(name), change))

    return mutate


def skip(name: str) -> Callable[[fx.GraphModule], None]:
    """Leave out a node: its users read what it read."""

    def mutate(module: fx.GraphModule) -> None:
        node = node_at(module, name)
        read = node.args[0]
        assert isinstance(read, fx.Node)
        node.replace_all_uses_with(read)
        module.graph.erase_node(node)

    return mutate


def forget_kept(module: fx.GraphModule) -> None:
    output = next(iter(reversed(module.graph.nodes)))
    output.args = ((output.args[0][0], {}),)


def test_a_sound_graph_passes(graphs: TokenGraphs, carved: RewriteResult) -> None:
    check_captured(graphs)
    check_carved(carved.graphs, carved.schedule)
    assert rows_after(carved.graphs, carved.schedule) == {
        "pixels": 64,
        "vision.layers.0": 64,
        "vision.layers.1": 40,
        "vision.layers.2": 40,
        "vision.layers.3": 8,
        "vision.layers.4": 8,
        "connector": 8,
        "language.layers.0": 8,
        "language.layers.1": 8,
        "language.layers.2": 8,
    }


def test_every_node_knows_its_shape_after_the_check(carved: RewriteResult) -> None:
    check_carved(carved.graphs, carved.schedule)
    for node in carved.graphs.vision.graph.nodes:
        assert node.op in ("placeholder", "output") or "val" in node.meta
    assert tuple(node_at(carved.graphs.vision, "vision.layers.4").meta["val"].shape) == (2, 9, 32)


MUTATIONS: dict[str, tuple[Callable[[fx.GraphModule], None], str]] = {
    "a take is left out": (skip("select_take_l1"), "node select_rule_l2 .* does not fit its inputs: .*64.*40"),
    "the last take is left out": (skip("select_take_l3"), "connector: 40 visual tokens, .* promises 8"),
    "one token too few": (wrap("select_choose_l3", lambda index: index[:, 1:]), "7 visual tokens, .* promises 8"),
    "an early count is wrong": (wrap("select_choose_l1", lambda i: i[:, 1:]), "kept indices.*promises 40|40 rows"),
    "indices are floats": (wrap("select_index_l3", lambda index: index.float()), "float32, not int64"),
    "[CLS] is dropped": (wrap("select_take_l3", lambda rows: rows[:, 1:]), "visual tokens"),
    "kept ids are not returned": (forget_kept, "vision.layers.1: 0 kept indices, .* promises 40"),
    "the connector pools": (wrap("connector", lambda rows: rows[:, ::2]), "connector: 4 visual tokens"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_graph_is_named(carved: RewriteResult, name: str) -> None:
    change, message = MUTATIONS[name]
    with pytest.raises(InvariantError, match=message):
        check_carved(mutated(carved.graphs, change), carved.schedule)
    check_carved(carved.graphs, carved.schedule)


def test_a_row_that_only_a_later_cut_would_hide_is_named(graphs: TokenGraphs) -> None:
    carved = rewrite(graphs, VtcCls().stages(graphs.geometry, 8, None))
    longer = mutated(carved.graphs, wrap("layers.0", lambda rows: torch.cat([rows, rows[:, :1]], dim=1)))
    with pytest.raises(InvariantError, match="vision.layers.0: 66 rows, but the schedule promises 65"):
        check_carved(longer, carved.schedule)


def test_a_schedule_that_promises_something_else_is_named(carved: RewriteResult) -> None:
    other = [replace(record, keep=record.keep + 1) for record in carved.schedule]
    with pytest.raises(InvariantError, match="connector: 8 visual tokens, but the schedule promises 9"):
        check_carved(carved.graphs, other)


def test_a_capture_that_loses_tokens_is_named(graphs: TokenGraphs) -> None:
    broken = mutated(graphs, wrap("connector", lambda rows: rows[:, 1:]))
    with pytest.raises(InvariantError, match=f"connector: {TOTAL - 1} visual tokens, .* promises {TOTAL}"):
        check_captured(broken)
