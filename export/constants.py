"""Constants of a graph: read wherever they are, changed only for the node that asks."""

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from export.refused import Refused


def constant_array(model: ir.Model, value: ir.Value | None) -> np.ndarray | Refused:
    """The array behind ``value``: an initialiser or the output of a Constant node."""
    if value is None:
        return Refused("is missing")
    # Before IR version 4 every initialiser had to be an input as well.
    if value.is_graph_input() and not (value.is_initializer() and model.ir_version < 4):
        return Refused("can be given by the caller: it is an input of the graph")
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        return Refused("is computed, not constant")
    try:
        return tensor.numpy()
    except (AttributeError, TypeError, ValueError) as error:
        return Refused(f"cannot be read: {error}")


def initializer(name: str, array: np.ndarray) -> ir.Value:
    """A constant for a graph's ``initializers``."""
    tensor = ir.tensor(array, name=name)
    return ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)


def replace_constant(model: ir.Model, node: ir.Node, index: int, array: np.ndarray, name: str) -> None:
    """Give ``node`` its own initialiser at input ``index``; others keep what they read.

    It is called ``name`` if the old one was and nothing else reads it, else ``name_folded``, numbered if need be.
    """
    graph = model.graph
    old = node.inputs[index]
    node.replace_input_with(index, None)
    drop_unused(graph, [old])
    taken = _names(graph)
    fresh, number = name, 1
    while fresh in taken:
        fresh = f"{name}_folded" if number == 1 else f"{name}_folded{number}"
        number += 1
    value = initializer(fresh, array)
    graph.initializers[fresh] = value
    if model.ir_version < 4:
        graph.inputs.append(value)
    node.replace_input_with(index, value)


def drop_unused(graph: ir.Graph, values: Iterable[ir.Value | None]) -> None:
    """Remove those constants among ``values`` that nothing reads any more."""
    for value in values:
        if value is None or value.uses() or value.is_graph_output():
            continue
        producer = value.producer()
        if producer is not None:
            if producer.op_type == "Constant" and producer.graph is graph:
                graph.remove(producer)
        elif value.is_initializer() and value.graph is graph:
            if value.is_graph_input():
                graph.inputs.remove(value)
            del graph.initializers[str(value.name)]


def _names(graph: ir.Graph) -> set[str | None]:
    """Every name that a value has, in subgraphs too."""
    names = {value.name for value in graph.inputs} | set(graph.initializers)
    for node in ir.traversal.RecursiveGraphIterator(graph):
        names.update(output.name for output in node.outputs)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                inner = attribute.as_graph()
                names.update(value.name for value in inner.inputs)
                names.update(inner.initializers)
    return names
