"""Transpose: axis a of the output is axis perm[a] of the input."""

import onnx_ir as ir

from export.folding.affine import Affine
from export.folding.graph import Graph, Step, attribute, describe
from export.folding.refused import Refused


def backward(graph: Graph, node: ir.Node, output: int, affine: Affine) -> Step | Refused:
    """On the axis from which it came."""
    value = node.inputs[0]
    assert value is not None
    perm = _permutation(graph, node, value, affine)
    if isinstance(perm, Refused):
        return perm
    return Step(onward=[(value, affine.on(*(perm[axis] for axis in affine.axes)))])


def forward(graph: Graph, node: ir.Node, index: int, affine: Affine) -> Step | Refused:
    """On the axis to which it goes."""
    value = node.inputs[0]
    assert value is not None
    perm = _permutation(graph, node, value, affine)
    if isinstance(perm, Refused):
        return perm
    return Step(onward=[(node.outputs[0], affine.on(*(perm.index(axis) for axis in affine.axes)))])


def _permutation(graph: Graph, node: ir.Node, value: ir.Value, affine: Affine) -> list[int] | Refused:
    """Where the axes come from; with all of ``affine`` among them."""
    perm = attribute(node, "perm", None)
    rank = graph.rank(value) if perm is None else len(perm)
    if affine.uniform:
        return []
    if rank is None:
        return Refused(f"{describe(node)}: the rank of its input is not known")
    if affine.axes[-1] >= rank:
        return Refused(f"{describe(node)} has no axis {affine.axes[-1]}")
    return [*range(rank)][::-1] if perm is None else list(perm)
