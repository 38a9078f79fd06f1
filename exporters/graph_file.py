"""What is said of a graph that was written."""

from dataclasses import dataclass

import onnx_ir as ir

__all__ = ["GraphFile", "graph_file_of"]


@dataclass(frozen=True, kw_only=True)
class GraphFile:
    """One written graph: its nodes, those of branches too; `weight_bytes` it reads from the weight file, `seconds` from
    torch to file."""

    name: str
    nodes: int
    selection_nodes: int
    graph_bytes: int
    weight_bytes: int
    seconds: float


def graph_file_of(name: str, model: ir.Model, size: int, seconds: float) -> GraphFile:
    """Of a graph in a file of `size` bytes, once its weights are external."""
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    external = [value.const_value for value in model.graph.initializers.values()]
    return GraphFile(
        name=name,
        nodes=len(nodes),
        selection_nodes=sum(str(node.name).startswith("tokcarve_select") for node in nodes),
        graph_bytes=size,
        weight_bytes=sum(tensor.nbytes for tensor in external if isinstance(tensor, ir.ExternalTensor)),
        seconds=round(seconds, 2),
    )
