"""Mul, Add, Sub, Div with one constant operand: an affine map if the constant varies along one axis at most."""

import numpy as np
import onnx_ir as ir

from export.folding.affine import Affine
from export.folding.graph import Graph, Held, attribute
from export.folding.refused import Refused

OPERATORS = ("Mul", "Add", "Sub", "Div")


def read_arithmetic(graph: Graph, node: ir.Node) -> Held | Refused:
    """The affine of the computed operand."""
    operands = [value for value in node.inputs if value is not None]
    if len(operands) != 2:
        return Refused(f"{node.op_type} has not two operands")
    index = 0 if operands[1].producer() is not None and _is_constant(graph, operands[0]) else 1
    if not _is_constant(graph, operands[index]):
        index = 1 - index
    x, constant = operands[1 - index], graph.constants.floats(operands[index])
    if isinstance(constant, Refused):
        return Refused(f"the operand of {node.op_type} {constant.reason}")
    if _is_constant(graph, x):
        return Refused(f"both operands of {node.op_type} are constant")
    if node.op_type == "Div" and index == 0:
        return Refused("a constant divided by x is not affine in x")
    located = _located(graph, node, x, constant)
    if isinstance(located, Refused):
        return located
    values, axis = located
    one, zero = np.ones_like(values), np.zeros_like(values)
    with np.errstate(all="ignore"):
        scale, shift = {
            "Mul": (values, zero),
            "Add": (one, values),
            "Sub": (one, -values) if index == 1 else (-one, values),
            "Div": (1 / values, zero),
        }[node.op_type]
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        return Refused(f"the constant of {node.op_type} does not give finite numbers")
    return Held(Affine.of(scale, shift, axis), constant.dtype, 1 - index)


def _is_constant(graph: Graph, value: ir.Value | None) -> bool:
    return not isinstance(graph.constants.array(value), Refused)


def _located(graph: Graph, node: ir.Node, x: ir.Value, constant: np.ndarray) -> tuple[np.ndarray, int | None] | Refused:
    """The constant as a vector, and the axis of ``x`` on which it lies; proved not to broadcast ``x`` itself."""
    rank = graph.rank(x)
    if graph.opset < 7 and constant.ndim:  # before, broadcasting had to be asked for, from a given axis on
        if not attribute(node, "broadcast", 0):
            return Refused(f"{node.op_type} with two operands of one shape is not one number per channel")
        first = attribute(node, "axis", None)
        if first is not None and rank is not None:
            constant = constant.reshape(constant.shape + (1,) * (rank - first % rank - constant.ndim))
    if constant.ndim == 0:
        return constant.astype(np.float64).reshape(1), None
    if rank is None or constant.ndim > rank:
        return Refused(f"the constant of {node.op_type} has {constant.ndim} axes, its operand {rank or 'unknown'}")
    varying = [axis for axis, size in enumerate(constant.shape) if size != 1]
    if len(varying) > 1:
        return Refused(f"the constant of {node.op_type} has shape {constant.shape}, not one number per channel")
    values = constant.astype(np.float64).reshape(-1)
    if not varying:
        return values, None
    axis = rank - constant.ndim + varying[0]
    if graph.length(x, axis) != values.size:
        return Refused(f"axis {axis} of the operand of {node.op_type} is not known to be {values.size} long")
    return values, axis
