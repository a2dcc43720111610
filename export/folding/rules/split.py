"""Split: along the channels an output holds a slice of them; along another axis all outputs hold all."""

import numpy as np
import onnx_ir as ir

from export.folding.affine import Affine
from export.folding.graph import Graph, Step, attribute, describe
from export.folding.refused import Refused


def backward(graph: Graph, node: ir.Node, output: int, affine: Affine) -> Step | Refused:
    """The input holds the affine in one slice and stays as it is in the others."""
    value = node.inputs[0]
    assert value is not None
    lengths = _lengths(graph, node)
    if lengths is None or not affine.fits(lengths[0], lengths[1][output]):
        return Refused(f"{describe(node)} splits another axis, and its other outputs would change")
    axis, sizes = lengths
    scale, shift = np.ones(sum(sizes)), np.zeros(sum(sizes))
    begin = sum(sizes[:output])
    part = slice(begin, begin + sizes[output])
    scale[part], shift[part] = affine.scale, affine.shift
    return Step(onward=[(value, Affine.of(scale, shift, axis))])


def forward(graph: Graph, node: ir.Node, index: int, affine: Affine) -> Step | Refused:
    """Every output hands on its slice, or all of it where another axis is split."""
    lengths = _lengths(graph, node)
    if affine.uniform or (lengths is not None and lengths[0] != affine.axis):
        return Step(onward=[(output, affine) for output in node.outputs if output.uses() or output.is_graph_output()])
    if lengths is None or sum(lengths[1]) != affine.scale.size:
        return Refused(f"{describe(node)}: the channels of its outputs are not known")
    axis, sizes = lengths
    ends = np.cumsum(sizes)
    parts = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    return Step(
        onward=[
            (output, Affine.of(affine.scale[part], affine.shift[part], axis))
            for output, part in zip(node.outputs, parts, strict=True)
            if output.uses() or output.is_graph_output()
        ]
    )


def _lengths(graph: Graph, node: ir.Node) -> tuple[int, list[int]] | None:
    """The axis that is split, and the lengths of the outputs on it."""
    axis = attribute(node, "axis", 0)
    rank = graph.rank(node.outputs[0]) if axis < 0 else 0
    if rank is None:
        return None
    lengths = [graph.length(output, axis + rank) for output in node.outputs]
    return None if None in lengths else (axis + rank, [length for length in lengths if length is not None])
