"""Whether a written graph keeps the rules of ONNX and ours: standard operators, constant shapes. Needs onnx alone."""

from collections.abc import Collection, Iterator
from pathlib import Path

import onnx

from tokcarve.exporters.device.compare import Check

__all__ = ["check_graph"]


def check_graph(path: Path, names: Collection[str] = (), opset: int | None = None) -> Check:
    """The full ONNX check, strict shape inference, standard operators only, and every dimension a constant, or in the
    graph's inputs and outputs one of `names`; in the `opset` that is expected."""
    name = f"{path.name}: valid ONNX, {'open in ' + ', '.join(names) if names else 'static'}"
    try:
        onnx.checker.check_model(_without_weights(onnx.load(path, load_external_data=False)), full_check=True)
        model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False), strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return Check(name=name, passed=False, detail=" ".join(str(error).split()))
    graph = model.graph
    lost = [file for file in _outside(graph) if not (path.parent / file).is_file()]
    if lost:
        return Check(name=name, passed=False, detail=f"its weights should be in {lost[0]}, which is missing")
    ends = (*graph.input, *graph.output)
    open_ended = [v.name for v in (ends if names else (*ends, *graph.value_info)) if not _is_static(v, names)]
    if open_ended:
        return Check(name=name, passed=False, detail=f"{open_ended[0]} and {len(open_ended) - 1} more are not static")
    nodes = list(_nodes(graph))
    foreign = sorted({node.domain for node in nodes} - {"", "ai.onnx"})
    if foreign or model.functions:
        return Check(name=name, passed=False, detail=f"it needs {', '.join(foreign) or 'functions'}")
    found = model.opset_import[0].version
    if opset is not None and found != opset:
        return Check(name=name, passed=False, detail=f"it is in opset {found}, and the export is in {opset}")
    return Check(name=name, passed=True, detail=f"{len(nodes)} nodes, opset {found}")


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of branches and loops too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _nodes(attribute.g)


def _outside(graph: onnx.GraphProto) -> list[str]:
    """The files of its external weights."""
    entries = (entry for one in graph.initializer for entry in one.external_data if entry.key == "location")
    return list(dict.fromkeys(entry.value for entry in entries))


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph, its external weights made inputs: the checker would refuse a weight file that has two names."""
    graph = model.graph
    outside = [one for one in graph.initializer if one.data_location == onnx.TensorProto.EXTERNAL]
    known = {value.name for value in graph.input}
    for one in outside:
        if one.name not in known:
            graph.input.append(onnx.helper.make_tensor_value_info(one.name, one.data_type, list(one.dims)))
        graph.initializer.remove(one)
    return model


def _is_static(value: onnx.ValueInfoProto, names: Collection[str]) -> bool:
    tensor = value.type.tensor_type
    return tensor.HasField("shape") and all(
        dim.dim_param in names if dim.HasField("dim_param") else dim.HasField("dim_value") and dim.dim_value > 0
        for dim in tensor.shape.dim
    )
