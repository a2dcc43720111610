"""Where the channels are before and behind a pooling or a reduction."""

import onnx_ir as ir

from export.folding.affine import Affine
from export.folding.graph import Graph, attribute, describe
from export.folding.refused import Refused


def whole_axis(graph: Graph, node: ir.Node, affine: Affine) -> Affine | Refused:
    """An affine on the output as one on the input."""
    if affine.axis is None:
        return affine
    gone = _reduced(graph, node)
    if isinstance(gone, Refused):
        return gone
    axis = affine.axis
    if not attribute(node, "keepdims", 1):
        for reduced in sorted(gone):
            axis += reduced <= axis
    return Refused(f"{describe(node)} joins the channels") if axis in gone else affine.on(axis)


def kept_axis(graph: Graph, node: ir.Node, affine: Affine) -> Affine | Refused:
    """An affine on the input as one on the output."""
    if affine.axis is None:
        return affine
    gone = _reduced(graph, node)
    if isinstance(gone, Refused):
        return gone
    if affine.axis in gone:
        return Refused(f"{describe(node)} joins the channels")
    keeps = attribute(node, "keepdims", 1)
    return affine.on(affine.axis if keeps else affine.axis - sum(axis < affine.axis for axis in gone))


def _reduced(graph: Graph, node: ir.Node) -> set[int] | Refused:
    """The axes over which the node goes; for a pooling all from the third on."""
    value = node.inputs[0]
    assert value is not None
    if not node.op_type.startswith("Reduce"):
        rank = graph.rank(value)
        return set(range(2, 8 if rank is None else rank))
    rank = graph.rank(value)
    axes = attribute(node, "axes", None)
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        axes = graph.constants.array(node.inputs[1])
    if isinstance(axes, Refused) or rank is None:
        return Refused(f"{describe(node)}: over which axes it goes is not known")
    if axes is not None and not all(-rank <= axis < rank for axis in axes):
        return Refused(f"{describe(node)}: its axes are not those of its input")
    if axes is None or len(axes) == 0:
        return set() if attribute(node, "noop_with_empty_axes", 0) else set(range(rank))
    return {int(axis) % rank for axis in axes}
