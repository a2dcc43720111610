"""Identity, and Dropout in inference: y = x."""

import onnx_ir as ir

from export.folding.affine import Affine
from export.folding.graph import Graph, Step, attribute, describe
from export.folding.refused import Refused


def backward(graph: Graph, node: ir.Node, output: int, affine: Affine) -> Step | Refused:
    """The input holds the affine."""
    return _refused(graph, node, output) or Step(onward=[(_input(node), affine)])


def forward(graph: Graph, node: ir.Node, index: int, affine: Affine) -> Step | Refused:
    """The output hands it on."""
    return _refused(graph, node, 0) or Step(onward=[(node.outputs[0], affine)])


def _input(node: ir.Node) -> ir.Value:
    value = node.inputs[0]
    assert value is not None
    return value


def _refused(graph: Graph, node: ir.Node, output: int) -> Refused | None:
    if output != 0:
        return Refused(f"it reads the mask of {describe(node)}")
    training = node.inputs[2] if len(node.inputs) > 2 else None
    if training is not None:
        mode = graph.constants.array(training)
        if isinstance(mode, Refused) or mode.any():
            return Refused(f"{describe(node)} is in training mode")
    if node.op_type == "Dropout" and graph.opset < 7 and not attribute(node, "is_test", 0):
        return Refused(f"{describe(node)} is in training mode")
    return None
