"""ONNX's shape inference on an onnx-ir model, without its weights."""

from collections.abc import Iterator

import onnx
import onnx_ir as ir

from export.files.native import infer_shapes

SMALL = 1024  # bytes: what may be a shape or an index is told to the inference, weights are not


def infer(model: ir.Model) -> None:
    """Give the values of ``model`` the shapes and types that ONNX infers; where it fails they stay as they are."""
    try:
        inferred = infer_shapes(_without_weights(model))
    except ValueError:
        return
    for graph, found in zip(_graphs(model.graph), _inferred_graphs(inferred.graph), strict=True):
        types = {info.name: info.type for infos in (found.value_info, found.output) for info in infos}
        for value in (value for node in graph for value in node.outputs):
            type_proto = types.get(value.name)
            if type_proto is not None and type_proto.HasField("tensor_type"):
                value.shape = ir.serde.deserialize_type_proto_for_shape(type_proto) or value.shape
                value.type = ir.serde.deserialize_type_proto_for_type(type_proto)


def _without_weights(model: ir.Model) -> onnx.ModelProto:
    """``model`` with every initializer an input as well, as old versions want it, and only the small ones' elements."""
    graph = model.graph
    inputs, initializers = list(graph.inputs), list(graph.initializers.values())
    try:
        for value in initializers:
            assert value.const_value is not None
            value.shape = value.shape or ir.Shape(value.const_value.shape.numpy())
            value.dtype = value.dtype or value.const_value.dtype
            if not value.is_graph_input():
                graph.inputs.append(value)
            if value.const_value.nbytes > SMALL:
                del graph.initializers[str(value.name)]
        return ir.to_proto(model)
    finally:
        graph.inputs.clear()
        graph.inputs.extend(inputs)
        graph.initializers.clear()
        for value in initializers:
            graph.initializers.add(value)


def _graphs(graph: ir.Graph) -> Iterator[ir.Graph]:
    yield graph
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from _graphs(attribute.as_graph())
            elif attribute.type == ir.AttributeType.GRAPHS:
                for inner in attribute.as_graphs():
                    yield from _graphs(inner)


def _inferred_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _inferred_graphs(attribute.g)
            for inner in attribute.graphs:
                yield from _inferred_graphs(inner)
