"""Reshape, Flatten, Squeeze, Unsqueeze: the same elements in the same order; ``shapes.carry`` follows the channels."""

import onnx_ir as ir

from export.folding.affine import Affine
from export.folding.graph import Graph, Step, describe
from export.folding.refused import Refused
from export.folding.shapes import carry


def backward(graph: Graph, node: ir.Node, output: int, affine: Affine) -> Step | Refused:
    """On the axis of the input that holds the channels."""
    value = node.inputs[0]
    assert value is not None
    return _carried(graph, node, node.outputs[0], value, affine)


def forward(graph: Graph, node: ir.Node, index: int, affine: Affine) -> Step | Refused:
    """On the axis of the output that holds the channels."""
    value = node.inputs[0]
    assert value is not None
    if index != 0:
        return Refused(f"{describe(node)} reads it as a shape")
    return _carried(graph, node, value, node.outputs[0], affine)


def _carried(graph: Graph, node: ir.Node, source: ir.Value, target: ir.Value, affine: Affine) -> Step | Refused:
    if affine.uniform:
        return Step(onward=[(target, affine)])
    shapes = graph.shape(source), graph.shape(target)
    if shapes[0] is None or shapes[1] is None:
        return Refused(f"{describe(node)}: the shapes of its input and output are not known")
    moved = carry(affine, shapes[0], shapes[1])
    if moved is None:
        return Refused(f"{describe(node)}: it is not proved where the channels of {shapes[0]} are in {shapes[1]}")
    return Step(onward=[(target, moved)])
