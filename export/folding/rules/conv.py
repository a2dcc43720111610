"""Conv y = W * x + b, its channels on axis 1.

Backward (Conv, then s y + t): W' = s W along output channels, b' = s b + t.
Forward (s x + t, then Conv): W' = W s along input channels, b' = b + sum(W t) where nothing is padded. Zero padding
is not affine in x: the border would need -t / s. Two forms are exact, and the one that touches fewer elements is taken:

    Conv(x + t / s, W s)                       one Add before, any shape, s != 0 where t != 0
    Conv(x, W s) + B,  B = Conv(t 1, W) + b    one Add behind, with a map of the border for a static size
"""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from export.folding.affine import Affine
from export.folding.graph import Graph, Step, attribute, describe
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
from fastbn.errors import FastbnError
from fastbn.functional import conv1d, conv2d, conv3d
from fastbn.functional.fold import round_to

LARGEST_MAP = 2**22  # elements of a border map; beyond it the model grows more than it gains


def backward(graph: Graph, node: ir.Node, output: int, affine: Affine) -> Step | Refused:
    """Absorb ``affine`` on the output channels."""
    linear = taking_outputs(graph, node, affine, read)
    if isinstance(linear, Refused):
        return linear
    return absorb_after(graph, node, affine, read)


def forward(graph: Graph, node: ir.Node, index: int, affine: Affine) -> Step | Refused:
    """Absorb ``affine`` on the input channels."""
    linear = taking_inputs(graph, node, index, affine, read)
    if isinstance(linear, Refused):
        return linear
    if affine.linear or not pads(node, linear):
        return absorb_before(graph, node, affine, read)
    behind = _map_behind(graph, node, linear, affine)
    before = offset_before(graph, node, linear, affine, read)
    if isinstance(behind, Refused):
        return before
    sizes = [graph.shape(value) for value in (node.inputs[0], node.outputs[0]) if value is not None]
    fewer = math.prod(n for n in sizes[1] or () if isinstance(n, int)) < math.prod(
        n for n in sizes[0] or () if isinstance(n, int)
    )
    return behind if fewer or isinstance(before, Refused) else before


def pads(node: ir.Node, linear: Linear) -> bool:
    """Whether the input may be padded with zeros."""
    mode = attribute(node, "auto_pad", "NOTSET")
    if mode == "VALID" or (all(size == 1 for size in linear.shape[2:]) and mode != "NOTSET"):
        return False
    return mode != "NOTSET" or any(attribute(node, "pads", ()))


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
    if bias is not None and bias.shape != array.shape[:1]:
        return Refused(f"its bias has shape {bias.shape}, not {array.shape[:1]}")
    outputs, inputs = array.shape[0] // groups, array.shape[1]
    return Linear(
        stored,
        array.shape,
        array.dtype,
        view=(groups, outputs, inputs, math.prod(array.shape[2:])),
        out_shape=(groups, outputs, 1, 1),
        in_shape=(groups, 1, inputs, 1),
        out_axis=0,
        bias=bias,
    )


def write(graph: Graph, node: ir.Node, linear: Linear) -> None:
    """Give the node its new constants."""
    write_bias(graph, node, linear, write_weight(graph, node, linear))


def _map_behind(graph: Graph, node: ir.Node, linear: Linear, affine: Affine) -> Step | Refused:
    """The constant Conv(t 1, W) + b behind; the layer takes s and loses its bias."""
    shape = graph.shape(node.inputs[0]) if node.inputs[0] is not None else None
    sizes = () if shape is None else tuple(size for size in shape[2:] if isinstance(size, int))
    output = node.outputs[0]
    channels = linear.inputs
    if any(number < 0 for number in attribute(node, "pads", ())):
        return Refused(f"{describe(node)} cuts its input")
    if shape is None or len(sizes) != len(shape) - 2 or attribute(node, "auto_pad", "NOTSET") != "NOTSET":
        return Refused(f"{describe(node)} pads it with zeros, and its size is not static")
    if channels * math.prod(sizes) > LARGEST_MAP or len(sizes) not in (1, 2, 3):
        return Refused(f"{describe(node)} pads it with zeros, and a map of its border would be too large")
    border = _border(node, linear, affine, sizes)
    step = absorb_before(graph, node, affine.only_scale(), read)
    if isinstance(step, Refused) or border.size > LARGEST_MAP:
        return Refused(f"{describe(node)} pads it with zeros, and a map of its border would be too large")

    def rounded(linear: Linear) -> np.ndarray:
        bias = 0.0 if linear.bias is None else linear.bias.reshape(-1, *(1,) * len(sizes))
        return round_to("fold", border + bias, linear.dtype)

    try:
        rounded(linear)
    except FastbnError as error:
        return Refused(f"{describe(node)}: {error}")

    def commit() -> None:
        # Not ``linear``: a second affine that comes here by another way finds the bias gone.
        added = rounded(graph.linears[node])
        if len(node.inputs) > 2:
            bias = node.inputs[2]
            node.replace_input_with(2, None)
            node.resize_inputs(2)
            graph.constants.drop_unused([bias])
        graph.linears[node] = replace(graph.linears[node], bias=None)
        graph.insert_after(output, "Add", graph.constants.add(ir.Tensor(added), f"{output.name}.border"))

    step.edits.append(commit)
    return step


def _border(node: ir.Node, linear: Linear, affine: Affine, sizes: tuple[int, ...]) -> np.ndarray:
    """Conv(t 1, W) in float64, (1, C_out, *sizes of the output)."""
    spatial = len(sizes)
    pads = attribute(node, "pads", (0,) * 2 * spatial)
    _, shift = affine.wide(linear.inputs)
    constant = np.broadcast_to(shift.reshape(1, -1, *(1,) * spatial), (1, linear.inputs, *sizes))
    padded = np.pad(constant, [(0, 0), (0, 0), *zip(pads[:spatial], pads[spatial:], strict=True)])
    convolve: Any = {1: conv1d, 2: conv2d, 3: conv3d}[spatial]
    weight = linear.full_weight()
    strides, dilations = (tuple(attribute(node, name, (1,) * spatial)) for name in ("strides", "dilations"))
    return convolve(padded, weight, None, strides, 0, dilations, attribute(node, "group", 1))
