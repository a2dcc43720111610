"""Cast between floating-point types: an affine may move to the side with more digits, where it is the more exact."""

import onnx_ir as ir

from export.affine import Affine
from export.graph import Graph, Step, attribute, describe
from export.refused import Refused

DIGITS = {ir.DataType.BFLOAT16: 8, ir.DataType.FLOAT16: 11, ir.DataType.FLOAT: 24, ir.DataType.DOUBLE: 53}


def backward(graph: Graph, node: ir.Node, output: int, affine: Affine) -> Step | Refused:
    """Through a cast that narrows."""
    return _through(graph, node, affine, narrows=True)


def forward(graph: Graph, node: ir.Node, index: int, affine: Affine) -> Step | Refused:
    """Through a cast that widens."""
    return _through(graph, node, affine, narrows=False)


def _through(graph: Graph, node: ir.Node, affine: Affine, narrows: bool) -> Step | Refused:
    value, result = node.inputs[0], node.outputs[0]
    assert value is not None
    dtype = graph.dtype(value)
    source = None if dtype is None else DIGITS.get(dtype)
    target = DIGITS.get(ir.DataType(attribute(node, "to", 0)))
    if source is None or target is None:
        return Refused(f"{describe(node)} is not known to be from one floating-point type to another")
    if (source < target) if narrows else (source > target):
        return Refused(f"{describe(node)}: the batch norm would be computed with fewer digits on its other side")
    return Step(onward=[(value if narrows else result, affine)])
