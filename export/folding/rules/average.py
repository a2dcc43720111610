"""AveragePool, GlobalAveragePool, ReduceMean: mean(s x + t) = s mean(x) + t where no padding is counted."""

import onnx_ir as ir

from export.folding.affine import Affine
from export.folding.graph import Graph, Step, attribute, describe
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
    if node.op_type != "AveragePool" or affine.linear or not attribute(node, "count_include_pad", 0):
        return None
    if attribute(node, "auto_pad", "NOTSET") in ("NOTSET", "VALID") and not any(attribute(node, "pads", ())):
        return Refused(f"{describe(node)} may round its size up") if attribute(node, "ceil_mode", 0) else None
    return Refused(f"{describe(node)} counts its padding, which is zero before and after a batch norm")
