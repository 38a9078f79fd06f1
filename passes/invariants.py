"""What must hold of a graph, stage by stage: one table, and the function that names what broke it.

captured   every node knows its shape; the connector delivers every visual token
carved     each site has exactly the count its stage promised; no row count of the old graph remains after it;
           kept indices are int64 [batch, keep]; prefix rows are never dropped
exported   no dimension of the graph is symbolic
"""

from collections.abc import Sequence

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp

from tokcarve.passes.errors import InvariantError, TokcarveError
from tokcarve.passes.graph import TokenGraphs
from tokcarve.passes.insert import StageRecord

__all__ = ["check_captured", "check_carved", "propagate_vision", "rows_after"]


def propagate_vision(graphs: TokenGraphs, batch: int = 2) -> tuple[Tensor, dict[str, Tensor]]:
    """Shapes of every node of the vision graph in meta["val"], computed without weights or arithmetic."""
    vision = graphs.geometry.vision
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    dtype = next((p.dtype for p in graphs.vision.parameters()), torch.float32)
    with mode:
        pixels = torch.empty(batch, 3, vision.image_size, vision.image_size, dtype=dtype, device=_device(graphs))
        ids = torch.empty(batch, graphs.geometry.total + 1, dtype=torch.int64, device=_device(graphs))
    inputs = (pixels, ids, ids[:, 0]) if graphs.reads_text else (pixels,)
    with torch.no_grad():
        features, kept = _Shapes(graphs.vision, mode).propagate_dont_convert_inputs(*inputs)
    return features, kept


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
            raise InvariantError(f"node {n.name} of the vision graph does not fit its inputs: {reason}") from error


def _device(graphs: TokenGraphs) -> torch.device:
    return next((p.device for p in graphs.vision.parameters()), torch.device("cpu"))


def rows_after(graphs: TokenGraphs, schedule: Sequence[StageRecord]) -> dict[str, int]:
    """Visual tokens that leave each site of the vision graph, by the schedule: {site: count}, in order."""
    alive, rows = graphs.geometry.total, {}
    keeps = {record.site: record.keep for record in schedule if record.how != "mask"}
    for node in graphs.vision.graph.nodes:
        if "site" in node.meta:
            alive = keeps.get(node.meta["site"], alive)
            rows[node.meta["site"]] = alive
    return rows


def check_captured(graphs: TokenGraphs) -> None:
    """The invariants of a fresh capture; InvariantError names the first node that breaks one."""
    features, _ = propagate_vision(graphs)
    _every_node_has_a_shape(graphs.vision)
    _expect("connector", "visual tokens", features.shape[1], graphs.geometry.total)


def check_carved(graphs: TokenGraphs, schedule: Sequence[StageRecord]) -> None:
    """The invariants after insertion; InvariantError names the site, the count found and the count promised."""
    features, kept = propagate_vision(graphs)
    _every_node_has_a_shape(graphs.vision)
    rows = rows_after(graphs, schedule)
    _expect("connector", "visual tokens", features.shape[1], rows["connector"])
    for record in schedule:
        if record.how != "mask":
            ids = kept.get(record.site)
            _expect(record.site, "kept indices", 0 if ids is None else ids.shape[1], record.keep)
            if ids is not None and ids.dtype != torch.int64:
                raise InvariantError(f"{record.site}: kept indices are {ids.dtype}, not int64")
    before = graphs.geometry.total
    for node in graphs.vision.graph.nodes:
        site = node.meta.get("site", "")
        if site.startswith("vision."):
            _expect(site, "rows", node.meta["val"].shape[1], before + graphs.geometry.vision.prefix)
        before = rows.get(site, before)


def _every_node_has_a_shape(module: fx.GraphModule) -> None:
    for node in module.graph.nodes:
        if node.op not in ("placeholder", "output") and "val" not in node.meta:
            raise InvariantError(f"node {node.name} of the {type(module).__name__} graph has no shape")


def _expect(site: str, what: str, found: int, promised: int) -> None:
    if found != promised:
        raise InvariantError(f"{site}: {found} {what}, but the schedule promises {promised}")
