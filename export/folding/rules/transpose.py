"""Transpose: axis a of the output is axis perm[a] of the input."""

import onnx_ir as ir

from export.folding.affine import Affine
from export.folding.graph import Graph, Step, attribute, describe
from export.folding.refused import Refused


def backward(graph: Graph, node: ir.Node, output: int, affine: Affine) -> Step | Refused:
    """On the axis from which it came."""
    value = node.inputs[0]
    assert value is not None
    if affine.axis is None:
        return Step(onward=[(value, affine)])
    perm = _permutation(graph, node, value)
    if isinstance(perm, Refused) or affine.axis >= len(perm):
        return perm if isinstance(perm, Refused) else Refused(f"{describe(node)} has no axis {affine.axis}")
    return Step(onward=[(value, affine.on(perm[affine.axis]))])


def forward(graph: Graph, node: ir.Node, index: int, affine: Affine) -> Step | Refused:
    """On the axis to which it goes."""
    value = node.inputs[0]
    assert value is not None
    if affine.axis is None:
        return Step(onward=[(node.outputs[0], affine)])
    perm = _permutation(graph, node, value)
    if isinstance(perm, Refused) or affine.axis not in perm:
        return perm if isinstance(perm, Refused) else Refused(f"{describe(node)} has no axis {affine.axis}")
    return Step(onward=[(node.outputs[0], affine.on(perm.index(affine.axis)))])


def _permutation(graph: Graph, node: ir.Node, value: ir.Value) -> list[int] | Refused:
    perm = attribute(node, "perm", None)
    if perm is not None:
        return list(perm)
    rank = graph.rank(value)
    return Refused(f"{describe(node)}: the rank of its input is not known") if rank is None else [*range(rank)][::-1]
