"""Add and Sum of computed values: s (a + b) + t = (s a + t) + s b, if both have the same channels.

Add with a constant is an affine map itself, see ``affine_node``.
"""

import onnx_ir as ir

from export.folding.affine import Affine
from export.folding.graph import Graph, Step, describe
from export.folding.refused import Refused
from export.folding.rules import affine_node


def backward(graph: Graph, node: ir.Node, output: int, affine: Affine) -> Step | Refused:
    """Every branch holds the scale, the first one the shift."""
    if any(not isinstance(graph.constants.array(value), Refused) for value in node.inputs):
        return affine_node.backward(graph, node, output, affine)
    shape = graph.shape(node.outputs[0])
    for value in node.inputs:
        if value is None or shape is None or graph.rank(value) != len(shape):
            return Refused(f"{describe(node)}: the shapes of its operands are not known")
        if affine.axis is not None and graph.length(value, affine.axis) != affine.scale.size:
            return Refused(f"{describe(node)}: its operands have not the batch norm's channels")
    first, *others = [value for value in node.inputs if value is not None]
    return Step(onward=[(first, affine), *((value, affine.only_scale()) for value in others)])


def forward(graph: Graph, node: ir.Node, index: int, affine: Affine) -> Step | Refused:
    """Into the Add itself where the other operand is constant."""
    if any(not isinstance(graph.constants.array(value), Refused) for value in node.inputs):
        return affine_node.forward(graph, node, index, affine)
    return Refused(f"{describe(node)} behind it adds it to another value")
