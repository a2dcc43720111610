"""Slice, and Gather with constant indices: a choice of channels, or of elements that keep their channel."""

import numpy as np
import onnx_ir as ir

from export.folding.affine import Affine
from export.folding.graph import Graph, Step, attribute, describe
from export.folding.refused import Refused


def backward(graph: Graph, node: ir.Node, output: int, affine: Affine) -> Step | Refused:
    """The input holds the affine in the channels that are chosen."""
    value = node.inputs[0]
    assert value is not None
    chosen = _chosen(graph, node, value, affine)
    if chosen is None or affine.uniform:
        return Step(onward=[(value, affine)])
    if isinstance(chosen, Refused):
        return chosen
    positions, channels = chosen
    if positions.size != affine.scale.size or np.unique(positions).size != positions.size:
        return Refused(f"{describe(node)} takes a channel more than once")
    scale, shift = np.ones(channels), np.zeros(channels)
    scale[positions], shift[positions] = affine.scale, affine.shift
    return Step(onward=[(value, Affine.of(scale, shift, affine.axis))])


def forward(graph: Graph, node: ir.Node, index: int, affine: Affine) -> Step | Refused:
    """The output hands on the affine of the channels that are chosen."""
    if index != 0:
        return Refused(f"{describe(node)} reads it as an index")
    value = node.inputs[0]
    assert value is not None
    chosen = _chosen(graph, node, value, affine)
    if chosen is None or affine.uniform:
        return Step(onward=[(node.outputs[0], affine)])
    if isinstance(chosen, Refused):
        return chosen
    positions, _ = chosen
    return Step(onward=[(node.outputs[0], Affine.of(affine.scale[positions], affine.shift[positions], affine.axis))])


def _chosen(graph: Graph, node: ir.Node, value: ir.Value, affine: Affine) -> tuple[np.ndarray, int] | Refused | None:
    """The channels that the output takes and how many there are; None where another axis is cut."""
    rank = graph.rank(value)
    if affine.axis is None:
        return None
    channels = graph.length(value, affine.axis)
    if rank is None or channels is None:
        return Refused(f"{describe(node)}: the channels of its input are not known")
    read = _gathered if node.op_type == "Gather" else _sliced
    return read(graph, node, rank, channels, affine.axis)


def _gathered(
    graph: Graph, node: ir.Node, rank: int, channels: int, axis: int
) -> tuple[np.ndarray, int] | Refused | None:
    indices = graph.constants.array(node.inputs[1])
    if attribute(node, "axis", 0) % rank != axis or isinstance(indices, Refused) or indices.ndim != 1:
        return Refused(f"{describe(node)} is not a constant choice of channels")
    return np.arange(channels)[indices], channels


def _sliced(
    graph: Graph, node: ir.Node, rank: int, channels: int, axis: int
) -> tuple[np.ndarray, int] | Refused | None:
    parts: list[list[int] | None] = []
    for position, name in enumerate(("starts", "ends", "axes", "steps"), start=1):
        given = node.inputs[position] if len(node.inputs) > position else None
        array = graph.constants.array(given) if given is not None else attribute(node, name, None)
        if isinstance(array, Refused):
            return Refused(f"{describe(node)} does not slice at constant places")
        parts.append(None if array is None else [int(number) for number in array])
    starts, ends, axes, steps = parts
    if starts is None or ends is None:
        return Refused(f"{describe(node)} does not say where to slice")
    axes = [number % rank for number in (axes or range(len(starts)))]
    if axis not in axes:
        return None
    place = axes.index(axis)
    return np.arange(channels)[starts[place] : ends[place] : 1 if steps is None else steps[place]], channels
