"""What must hold of a graph, stage by stage: one table, and the function that names what broke it.

captured   every node knows its shape; the connector delivers every visual token
carved     each site has exactly the count its stage promised; no row count of the old graph remains after it;
           kept indices are int64 [batch, keep]; prefix rows and text are never dropped
exported   no dimension of the graph is symbolic
"""

from collections.abc import Sequence

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from tokcarve.passes.errors import InvariantError, TokcarveError
from tokcarve.passes.graph import Read, Seen, TokenGraphs, thread
from tokcarve.passes.insert import StageRecord

__all__ = ["check_captured", "check_carved", "propagate_language", "propagate_vision", "rows_after"]


def propagate_vision(graphs: TokenGraphs, batch: int = 2) -> Seen:
    """Shapes of every node of the vision graph in meta["val"], computed without weights or arithmetic."""
    vision = graphs.geometry.vision
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        side = (batch, 3, vision.image_size, vision.image_size)
        pixels = torch.empty(side, dtype=_dtype(graphs), device=_device(graphs))
        ids = torch.empty(batch, graphs.geometry.total + 1, dtype=torch.int64, device=_device(graphs))
    inputs = (pixels, ids, ids[:, 0]) if graphs.reads_text else (pixels,)
    with torch.no_grad():
        return Seen(*_Shapes(graphs.vision, mode).propagate_dont_convert_inputs(*inputs))


def propagate_language(graphs: TokenGraphs, *, batch: int = 2, text: int = 8) -> Read:
    """Shapes of every node of the language graph, for prompts of `text` rows beside the visual tokens."""
    tokens = thread(graphs.vision).count
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    handed = propagate_vision(graphs, batch).handed if graphs.handed else {}
    with mode:
        hidden = (batch, text + tokens, graphs.geometry.text.hidden)
        embeds = torch.empty(hidden, dtype=_dtype(graphs), device=_device(graphs))
        ids = torch.empty(hidden[:2], dtype=torch.int64, device=_device(graphs))
        named = {"visual_start": ids[:, 0]}
        named |= {name: torch.empty(tuple(one.shape), device=_device(graphs)) for name, one in handed.items()}
        free = torch.empty(batch, tokens, device=_device(graphs))
    more = (named.get(name, free) for name in graphs.language_inputs)
    with torch.no_grad():
        return Read(*_Shapes(graphs.language, mode).propagate_dont_convert_inputs(embeds, ids, ids[:, 0], *more))


class _Shapes(FakeTensorProp):
    """Shape propagation that names the node whose inputs do not fit it."""

    def __init__(self, module: fx.GraphModule, mode: FakeTensorMode) -> None:
        super().__init__(module, mode)
        self.extra_traceback = False

    def run_node(self, n: fx.Node) -> object:
        try:
            return super().run_node(n)
        except TokcarveError:
            raise
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise InvariantError(
                f"node {n.name} of the {type(self.module).__name__} graph does not fit its inputs: {reason}"
            ) from error


def _dtype(graphs: TokenGraphs) -> torch.dtype:
    return next((p.dtype for p in graphs.vision.parameters()), torch.float32)


def _device(graphs: TokenGraphs) -> torch.device:
    return next((p.device for p in graphs.vision.parameters()), torch.device("cpu"))


def rows_after(graphs: TokenGraphs, schedule: Sequence[StageRecord]) -> dict[str, int]:
    """Visual tokens that leave each site of both graphs, by the schedule: {site: count}, in order."""
    alive, rows = graphs.geometry.total, {}
    keeps = {record.site: record.keep for record in schedule if record.how != "mask"}
    for node in (*graphs.vision.graph.nodes, *graphs.language.graph.nodes):
        if "site" in node.meta:
            alive = keeps.get(node.meta["site"], alive)
            rows[node.meta["site"]] = alive
    return rows


def check_captured(graphs: TokenGraphs) -> None:
    """The invariants of a fresh capture; InvariantError names the first node that breaks one."""
    features = propagate_vision(graphs).features
    propagate_language(graphs)
    _every_node_has_a_shape(graphs.vision)
    _every_node_has_a_shape(graphs.language)
    _expect("connector", "visual tokens", features.shape[1], graphs.geometry.total)


def check_carved(graphs: TokenGraphs, schedule: Sequence[StageRecord]) -> None:
    """The invariants after insertion; InvariantError names the site, the count found and the count promised."""
    seen = propagate_vision(graphs)
    text = 8
    modules, inside = [graphs.vision], dict[str, Tensor]()
    if graphs.language_inputs:  # without stages there it is the captured graph, which was checked
        modules, inside = [*modules, graphs.language], propagate_language(graphs, text=text).kept
    for module in modules:
        _every_node_has_a_shape(module)
    rows = rows_after(graphs, schedule)
    _expect("connector", "visual tokens", seen.features.shape[1], rows["connector"])
    for record in schedule:
        if record.how not in ("mask", "exit", "lean"):
            ids = {**seen.kept, **inside}.get(record.site)
            _expect(record.site, "kept indices", 0 if ids is None else ids.shape[1], record.keep)
            if ids is not None and ids.dtype != torch.int64:
                raise InvariantError(f"{record.site}: kept indices are {ids.dtype}, not int64")
    before = graphs.geometry.total
    for node in (node for module in modules for node in module.graph.nodes):
        site = node.meta.get("site", "")
        if site.startswith(("vision.", "language.")):
            beside = graphs.geometry.vision.prefix if site.startswith("vision.") else text
            _expect(site, "rows", node.meta["val"].shape[1], before + beside)
        before = rows.get(site, before)


def _every_node_has_a_shape(module: fx.GraphModule) -> None:
    for node in module.graph.nodes:
        if node.op not in ("placeholder", "output") and "val" not in node.meta:
            raise InvariantError(f"node {node.name} of the {type(module).__name__} graph has no shape")


def _expect(site: str, what: str, found: int, promised: int) -> None:
    if found != promised:
        raise InvariantError(f"{site}: {found} {what}, but the schedule promises {promised}")
