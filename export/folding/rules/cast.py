"""Cast between floating-point types.

An affine may move to the side with more digits, where it is the more exact. It may move backward to fewer digits, too,
as what is cast has no more: but not to float16, whose range is too small for what the batch norm may make of it.
"""

import onnx_ir as ir

from export.folding.affine import Affine
from export.folding.graph import Graph, Step, attribute, describe
from export.folding.refused import Refused

DIGITS = {ir.DataType.BFLOAT16: 8, ir.DataType.FLOAT16: 11, ir.DataType.FLOAT: 24, ir.DataType.DOUBLE: 53}


def backward(graph: Graph, node: ir.Node, output: int, affine: Affine) -> Step | Refused:
    """The input holds the affine."""
    value = node.inputs[0]
    assert value is not None
    source, target = _types(graph, node, value)
    if source is None or target is None:
        return Refused(f"{describe(node)} is not known to be from one floating-point type to another")
    if source is ir.DataType.FLOAT16 and target is not source:
        return Refused(f"{describe(node)}: the batch norm would be computed in float16, whose range is too small")
    return Step(onward=[(value, affine)])


def forward(graph: Graph, node: ir.Node, index: int, affine: Affine) -> Step | Refused:
    """The output hands it on."""
    value = node.inputs[0]
    assert value is not None
    source, target = _types(graph, node, value)
    if source is None or target is None:
        return Refused(f"{describe(node)} is not known to be from one floating-point type to another")
    if DIGITS[source] > DIGITS[target]:
        return Refused(f"{describe(node)}: the batch norm would be computed with fewer digits behind it")
    return Step(onward=[(node.outputs[0], affine)])


def _types(graph: Graph, node: ir.Node, value: ir.Value) -> tuple[ir.DataType | None, ir.DataType | None]:
    """The floating-point types of input and output, None for another or an unknown one."""
    source, target = graph.dtype(value), _target(node)
    return source if source in DIGITS else None, target if target in DIGITS else None


def _target(node: ir.Node) -> ir.DataType | None:
    """What it casts to: a number, or before opset 6 a name."""
    to = node.attributes.get("to")
    if to is not None and to.type == ir.AttributeType.STRING:
        return ir.DataType.__members__.get(to.as_string())
    return ir.DataType(attribute(node, "to", 0))
