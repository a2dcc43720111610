"""MatMul y = x W or W x with a constant W: its features are on the last axis of y, or on the last but one.

Backward: W' = W diag(s), and what is left of t becomes an Add behind (an Add that was there has been taken in before).
Forward: W' = diag(s) W, and t W becomes an Add behind.
"""

import numpy as np
import onnx_ir as ir

from export.folding.affine import Affine
from export.folding.graph import Graph, Step, describe
from export.folding.linear import Linear
from export.folding.refused import Refused
from export.folding.rules.layer import absorb_after, absorb_before, linear_of, weight_of, write_weight


def backward(graph: Graph, node: ir.Node, output: int, affine: Affine) -> Step | Refused:
    """Absorb ``affine`` on the features of y."""
    linear = linear_of(graph, node, read)
    if isinstance(linear, Refused):
        return linear
    axis = _axis(graph, node)
    if not affine.uniform and (axis is None or not affine.fits(axis, linear.outputs)):
        where = "an axis that is not known" if axis is None else f"axis {axis}"
        return Refused(f"{describe(node)}: its {linear.outputs} features are on {where}, the batch norm has {affine}")
    if axis is None and not affine.linear and _weight_index(graph, node) == 0:
        return Refused(f"{describe(node)}: the rank of its input is not known")
    return absorb_after(graph, node, affine, read)


def forward(graph: Graph, node: ir.Node, index: int, affine: Affine) -> Step | Refused:
    """Absorb ``affine`` on the features of x."""
    linear = linear_of(graph, node, read)
    if isinstance(linear, Refused):
        return linear
    axis = _axis(graph, node)
    if axis is None and not affine.linear:
        return Refused(f"{describe(node)}: the rank of its input is not known")
    if not affine.uniform and (axis is None or not affine.fits(axis, linear.inputs)):
        where = "an axis that is not known" if axis is None else f"axis {axis}"
        return Refused(f"{describe(node)}: its {linear.inputs} inputs are on {where}, the batch norm has {affine}")
    whole = absorb_before(graph, node, affine, read)
    scaled = absorb_before(graph, node, affine.only_scale(), read)
    if affine.linear or isinstance(whole, Refused) or isinstance(scaled, Refused):
        return whole
    # An Add behind, if there is one, takes t W; else there will be one.
    shift = linear.response(affine.wide(linear.inputs)[1])
    scaled.onward = [(node.outputs[0], Affine.of(np.ones_like(shift), shift, axis))]
    scaled.otherwise = whole
    return scaled


def read(graph: Graph, node: ir.Node) -> Linear | Refused:
    """The node's constant."""
    index = _weight_index(graph, node)
    weight = weight_of(graph, node, index)
    if isinstance(weight, Refused):
        return weight
    stored, array = weight
    if array.ndim != 2:
        return Refused(f"its weight has shape {array.shape}, not two axes")
    across, down = (1, array.shape[1]), (array.shape[0], 1)
    return Linear(
        stored,
        array.shape,
        array.dtype,
        view=array.shape,
        out_shape=across if index == 1 else down,
        in_shape=down if index == 1 else across,
        out_axis=index,
        weight_index=index,
    )


def write(graph: Graph, node: ir.Node, linear: Linear) -> None:
    """Give the node its new weight, and the Add behind it that its bias needs."""
    index = _weight_index(graph, node)
    name = write_weight(graph, node, linear, index)
    bias = linear.rounded_bias()
    if bias is None or not bias.any():
        return
    if index == 0:
        bias = bias.reshape(-1, 1)
    stem = name.removesuffix(".T").removesuffix(".weight")
    constant = graph.constants.add(ir.Tensor(np.ascontiguousarray(bias)), f"{stem}.bias")
    graph.insert_after(node.outputs[0], "Add", constant)


def _weight_index(graph: Graph, node: ir.Node) -> int:
    """Which of the two inputs is the weight."""
    return 0 if isinstance(graph.constants.array(node.inputs[1]), Refused) else 1


def _axis(graph: Graph, node: ir.Node) -> int | None:
    """The axis of x on which its features are, and those of y."""
    index = _weight_index(graph, node)
    x = node.inputs[1 - index]
    rank = None if x is None else graph.rank(x)
    if rank is None or rank < 2 - index:
        return None
    return rank - 1 if index == 1 else rank - 2
