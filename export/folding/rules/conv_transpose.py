"""ConvTranspose, W (C_in, C_out / groups, *kernel), its channels on axis 1.

Backward: W' = s W along output channels, b' = s b + t. Forward: the layer is linear in x and pads nothing that goes in,
so ConvTranspose(s x + t) = ConvTranspose(x + t / s, W s): exact, with one Add before where t != 0. With a kernel of
one tap and stride 1 every output is made of one pixel, and b' = b + sum(W t).
"""

import math

import onnx_ir as ir

from export.folding.affine import Affine
from export.folding.graph import Graph, Step, attribute
from export.folding.linear import Linear
from export.folding.refused import Refused
from export.folding.rules.layer import (
    absorb_after,
    absorb_before,
    bias_of,
    offset_before,
    taking_inputs,
    taking_outputs,
    weight_of,
    write_bias,
    write_weight,
)


def backward(graph: Graph, node: ir.Node, output: int, affine: Affine) -> Step | Refused:
    """Absorb ``affine`` on the output channels."""
    linear = taking_outputs(graph, node, affine, read)
    if isinstance(linear, Refused):
        return linear
    return absorb_after(graph, node, affine, read)


def forward(graph: Graph, node: ir.Node, index: int, affine: Affine) -> Step | Refused:
    """Absorb ``affine`` on the input channels, with an Add in front for its shift."""
    linear = taking_inputs(graph, node, index, affine, read)
    if isinstance(linear, Refused):
        return linear
    if affine.linear or _is_pointwise(node, linear):
        return absorb_before(graph, node, affine, read)
    return offset_before(graph, node, linear, affine, read)


def read(graph: Graph, node: ir.Node) -> Linear | Refused:
    """The node's constants."""
    weight, bias = weight_of(graph, node), bias_of(graph, node)
    if isinstance(weight, Refused):
        return weight
    if isinstance(bias, Refused):
        return bias
    stored, array = weight
    groups = attribute(node, "group", 1)
    if array.ndim < 3 or groups < 1 or array.shape[0] % groups:
        return Refused(f"its weight of shape {array.shape} does not fit {groups} groups")
    if bias is not None and bias.shape != (array.shape[1] * groups,):
        return Refused(f"its bias has shape {bias.shape}, not {(array.shape[1] * groups,)}")
    inputs, outputs = array.shape[0] // groups, array.shape[1]
    return Linear(
        stored,
        array.shape,
        array.dtype,
        view=(groups, inputs, outputs, math.prod(array.shape[2:])),
        out_shape=(groups, 1, outputs, 1),
        in_shape=(groups, inputs, 1, 1),
        out_axis=1 if groups == 1 else None,
        bias=bias,
    )


def _is_pointwise(node: ir.Node, linear: Linear) -> bool:
    plain = not any(any(attribute(node, name, ())) for name in ("pads", "output_padding", "output_shape"))
    unstrided = all(step == 1 for step in attribute(node, "strides", ()))
    return plain and unstrided and all(size == 1 for size in linear.shape[2:])


def write(graph: Graph, node: ir.Node, linear: Linear) -> None:
    """Give the node its new constants."""
    write_bias(graph, node, linear, write_weight(graph, node, linear))
