"""Concat: along the channels every part has its slice of the affine; along another axis every part has all of it."""

from functools import partial

import numpy as np
import onnx_ir as ir

from export.folding.affine import Affine
from export.folding.graph import Graph, Step, along, attribute, describe
from export.folding.refused import Refused
from fastbn.errors import FastbnError
from fastbn.functional.fold import round_to


def backward(graph: Graph, node: ir.Node, output: int, affine: Affine) -> Step | Refused:
    """Every input holds its part."""
    parts = [value for value in node.inputs if value is not None]
    axis = _axis(graph, node)
    if affine.uniform or (axis is not None and axis != affine.axis):
        return _step(graph, node, [(value, affine) for value in parts])
    lengths = None if axis is None else _lengths(graph, node, axis)
    if axis is None or lengths is None or sum(lengths) != affine.scale.size:
        return Refused(f"{describe(node)}: the channels of its inputs are not known")
    ends = np.cumsum(lengths)
    slices = [slice(end - length, end) for end, length in zip(ends, lengths, strict=True)]
    affines = [Affine.of(affine.scale[part], affine.shift[part], axis) for part in slices]
    return _step(graph, node, list(zip(parts, affines, strict=True)))


def _step(graph: Graph, node: ir.Node, parts: list[tuple[ir.Value, Affine]]) -> Step | Refused:
    """Constants are mapped at once, everything else is asked to hold its part."""
    step = Step(once=any(not isinstance(graph.constants.floats(value), Refused) for value, _ in parts))
    for index, (value, affine) in enumerate(parts):
        constant = graph.constants.floats(value)
        if isinstance(constant, Refused):
            step.onward.append((value, affine))
            continue
        shape = (1,) if affine.axis is None else along(constant.ndim, affine.axis, affine.scale.size)
        with np.errstate(all="ignore"):
            mapped = constant.astype(np.float64) * affine.scale.reshape(shape) + affine.shift.reshape(shape)
        try:
            tensor = ir.Tensor(round_to("fold", mapped, constant.dtype))
        except FastbnError as error:
            return Refused(f"{describe(node)}: {error}")
        name = value.name or "constant"
        step.edits.append(partial(graph.constants.replace, node, index, tensor, name))
    return step


def forward(graph: Graph, node: ir.Node, index: int, affine: Affine) -> Step | Refused:
    """The output hands on the affine of this part; the others stay as they are."""
    axis = _axis(graph, node)
    lengths = None if axis is None else _lengths(graph, node, axis)
    if axis is None or lengths is None or not affine.fits(axis, lengths[index]):
        return Refused(f"{describe(node)} behind it joins it with others along an axis that is not its channels'")
    scale, shift = np.ones(sum(lengths)), np.zeros(sum(lengths))
    begin = sum(lengths[:index])
    part = slice(begin, begin + lengths[index])
    scale[part], shift[part] = affine.scale, affine.shift
    return Step(onward=[(node.outputs[0], Affine.of(scale, shift, axis))])


def _axis(graph: Graph, node: ir.Node) -> int | None:
    axis = attribute(node, "axis", 1)  # 1 was the default before opset 4
    rank = graph.rank(node.outputs[0]) if axis < 0 else 0
    return None if rank is None else axis + rank


def _lengths(graph: Graph, node: ir.Node, axis: int) -> list[int] | None:
    lengths = [None if value is None else graph.length(value, axis) for value in node.inputs]
    return None if None in lengths else [length for length in lengths if length is not None]
