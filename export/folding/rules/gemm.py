"""Gemm y = alpha A' B' + beta C with constant B and C, features on the last axis of y.

Backward: B' = B s along outputs, C' = s beta C + t, beta' = 1. Forward (s a + t along the features of A):
B' = s B along inputs, C' = beta C + alpha t B.
"""

import numpy as np
import onnx_ir as ir

from export.folding.affine import Affine
from export.folding.graph import Graph, Step, attribute
from export.folding.linear import Linear
from export.folding.refused import Refused
from export.folding.rules.layer import (
    absorb_after,
    absorb_before,
    bias_of,
    taking_inputs,
    taking_outputs,
    weight_of,
    write_bias,
    write_weight,
)


def backward(graph: Graph, node: ir.Node, output: int, affine: Affine) -> Step | Refused:
    """Absorb ``affine`` on the features of y."""
    linear = taking_outputs(graph, node, affine, read)
    if isinstance(linear, Refused):
        return linear
    return absorb_after(graph, node, affine, read)


def forward(graph: Graph, node: ir.Node, index: int, affine: Affine) -> Step | Refused:
    """Absorb ``affine`` on the features of A."""
    axis = 0 if attribute(node, "transA", 0) else 1
    linear = taking_inputs(graph, node, index, affine, read, axis)
    if isinstance(linear, Refused):
        return linear
    return absorb_before(graph, node, affine, read)


def read(graph: Graph, node: ir.Node) -> Linear | Refused:
    """The node's constants."""
    weight, bias = weight_of(graph, node), bias_of(graph, node)
    if isinstance(weight, Refused):
        return weight
    if isinstance(bias, Refused):
        return bias
    stored, array = weight
    if array.ndim != 2:
        return Refused(f"its weight has shape {array.shape}, not two axes")
    transposed = bool(attribute(node, "transB", 0))
    outputs, inputs = array.shape if transposed else array.shape[::-1]
    if bias is not None:
        if bias.ndim > 2 or bias.shape[-1:] not in ((), (1,), (outputs,)):
            return Refused(f"its C has shape {bias.shape}, which does not fit {outputs} features")
        bias = attribute(node, "beta", 1.0) * bias
        bias = np.broadcast_to(bias, (*bias.shape[:-1], outputs))
        bias = bias[0] if bias.shape[:-1] == (1,) else bias
    across, down = (1, outputs), (inputs, 1)
    return Linear(
        stored,
        array.shape,
        array.dtype,
        view=array.shape,
        out_shape=across[::-1] if transposed else across,
        in_shape=down[::-1] if transposed else down,
        out_axis=0 if transposed else 1,
        factor=attribute(node, "alpha", 1.0),
        bias=bias,
    )


def write(graph: Graph, node: ir.Node, linear: Linear) -> None:
    """Give the node its new constants; alpha stays, beta becomes 1."""
    name = write_weight(graph, node, linear)
    write_bias(graph, node, linear, name)
    if graph.opset < 7 and linear.bias is not None:
        node.attributes.add(ir.AttrInt64("broadcast", 1))
    if "beta" in node.attributes:
        node.attributes.add(ir.AttrFloat32("beta", 1.0))
