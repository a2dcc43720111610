"""Resize, Upsample: every output is a weighted mean of inputs of its channel, with weights that add up to one."""

import onnx_ir as ir

from export.folding.affine import Affine
from export.folding.graph import Graph, Step, attribute, describe
from export.folding.refused import Refused


def backward(graph: Graph, node: ir.Node, output: int, affine: Affine) -> Step | Refused:
    """The input holds the affine."""
    value = node.inputs[0]
    assert value is not None
    return _refused(graph, node, affine) or Step(onward=[(value, affine)])


def forward(graph: Graph, node: ir.Node, index: int, affine: Affine) -> Step | Refused:
    """The output hands it on."""
    if index != 0:
        return Refused(f"{describe(node)} reads it as a size")
    return _refused(graph, node, affine) or Step(onward=[(node.outputs[0], affine)])


def _refused(graph: Graph, node: ir.Node, affine: Affine) -> Refused | None:
    mode = attribute(node, "coordinate_transformation_mode", "")
    if mode == "tf_crop_and_resize":
        return Refused(f"{describe(node)} cuts its input and fills what lies outside with a constant")
    if affine.axis is None:
        return None
    rank = graph.rank(node.inputs[0]) if node.inputs[0] is not None else None
    axes = attribute(node, "axes", None)
    if axes is not None:
        if not rank:
            return Refused(f"{describe(node)}: the rank of its input is not known")
        axes = [axis % rank for axis in axes]
        if affine.axis not in axes:
            return None
    if mode == "tf_half_pixel_for_nn":
        return Refused(f"{describe(node)} may move channels by half an element")
    return _resized(graph, node, affine, affine.axis if axes is None else axes.index(affine.axis))


def _resized(graph: Graph, node: ir.Node, affine: Affine, place: int) -> Refused | None:
    """Why the axis that is number ``place`` among the resized ones may change, if it may."""
    scales = attribute(node, "scales", None)
    first = 1 if node.op_type == "Upsample" or graph.opset < 11 else 2
    for index in range(first, len(node.inputs)):
        array = graph.constants.array(node.inputs[index]) if node.inputs[index] is not None else None
        if isinstance(array, Refused):
            return Refused(f"{describe(node)}: by how much it resizes is not constant")
        if array is None or array.size == 0:
            continue
        if index == 3:  # sizes
            channels = graph.length(node.inputs[0], affine.axis)  # type: ignore[arg-type]
            stretched = attribute(node, "keep_aspect_ratio_policy", "stretch") == "stretch"
            return None if stretched and array[place] == channels else _channels(node)
        scales = array
    if scales is None or place >= len(scales):
        return Refused(f"{describe(node)}: by how much it resizes is not known")
    return None if scales[place] == 1 else _channels(node)


def _channels(node: ir.Node) -> Refused:
    return Refused(f"{describe(node)} resizes the channels")
