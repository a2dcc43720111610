"""Relu, LeakyRelu, PRelu: f(s x) = s f(x) for s >= 0, so a scale without a shift passes."""

import onnx_ir as ir

from export.folding.affine import Affine
from export.folding.graph import Graph, Step, describe
from export.folding.refused import Refused


def backward(graph: Graph, node: ir.Node, output: int, affine: Affine) -> Step | Refused:
    """The input holds the scale."""
    value = node.inputs[0]
    assert value is not None
    return _refused(node, affine) or Step(onward=[(value, affine)])


def forward(graph: Graph, node: ir.Node, index: int, affine: Affine) -> Step | Refused:
    """The output hands the scale on."""
    if index != 0:
        return Refused(f"{describe(node)} behind it reads it as a slope")
    return _refused(node, affine) or Step(onward=[(node.outputs[0], affine)])


def _refused(node: ir.Node, affine: Affine) -> Refused | None:
    if not affine.linear:
        return Refused(f"{describe(node)} is not affine: only a scale without a shift passes it")
    return Refused(f"{describe(node)}: a negative scale does not pass it") if (affine.scale < 0).any() else None
