"""MaxPool, GlobalMaxPool, ReduceMax: max(s x + t) = s max(x) + t for s >= 0; its padding is never the largest."""

import onnx_ir as ir

from export.folding.affine import Affine
from export.folding.graph import Graph, Step, describe
from export.folding.refused import Refused
from export.folding.rules.reduction import kept_axis, whole_axis


def backward(graph: Graph, node: ir.Node, output: int, affine: Affine) -> Step | Refused:
    """The input holds the affine."""
    value = node.inputs[0]
    assert value is not None
    moved = _refused(node, affine) or whole_axis(graph, node, affine)
    return moved if isinstance(moved, Refused) else Step(onward=[(value, moved)])


def forward(graph: Graph, node: ir.Node, index: int, affine: Affine) -> Step | Refused:
    """The output hands it on."""
    moved = _refused(node, affine) or kept_axis(graph, node, affine)
    return moved if isinstance(moved, Refused) else Step(onward=[(node.outputs[0], moved)])


def _refused(node: ir.Node, affine: Affine) -> Refused | None:
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]) and (affine.scale == 0).any():
        return Refused(f"{describe(node)}: its indices are used, and a channel's scale is 0")
    if (affine.scale < 0).any():
        return Refused(f"{describe(node)}: {(affine.scale < 0).sum()} scales are negative and turn its order round")
    return None
