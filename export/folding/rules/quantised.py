"""A weight behind DequantizeLinear, (q - zero point) scale: s W is (q - zero point) (s scale), with q as it is.

So a positive scale on the output channels goes into the scales, one for every channel; anything else would have to
round q again and is refused.
"""

import numpy as np
import onnx_ir as ir

from export.folding.graph import Graph, attribute, describe, is_onnx
from export.folding.linear import Linear
from export.folding.refused import Refused
from fastbn.errors import FastbnError
from fastbn.functional.fold import round_to


def dequantizer(node: ir.Node, index: int) -> ir.Node | None:
    """The DequantizeLinear that gives input ``index`` of ``node``, if one does."""
    value = node.inputs[index] if len(node.inputs) > index else None
    producer = None if value is None else value.producer()
    return producer if producer is not None and producer.op_type == "DequantizeLinear" and is_onnx(producer) else None


def refuse(graph: Graph, source: ir.Node, linear: Linear) -> Refused | None:
    """Why what ``linear`` has absorbed cannot go into the scales of ``source``."""
    who = f"{describe(source)} before it is a quantised weight"
    if linear.in_scale is not None:
        return Refused(f"{who}, which cannot take scales on its inputs")
    if linear.out_scale is None:
        return None
    if not (linear.out_scale > 0).all():
        return Refused(f"{who}, which cannot take scales that are not positive")
    scale = graph.constants.floats(source.inputs[1])
    if isinstance(scale, Refused):
        return Refused(f"{who}, whose scale {scale.reason}")
    axis = attribute(source, "axis", 1) % len(linear.shape)
    per_channel = scale.shape == (linear.outputs,) and axis == linear.out_axis
    if (
        graph.opset < 13
        or linear.out_axis is None
        or attribute(source, "block_size", 0)
        or not (scale.size == 1 or per_channel)
    ):
        return Refused(f"{who}, which cannot have one scale for every output channel")
    try:
        _scales(scale, linear.out_scale)
    except FastbnError as error:
        return Refused(f"{who}, and {error}")
    return None


def _scales(old: np.ndarray, more: np.ndarray) -> np.ndarray:
    """One scale for every output channel. Raises ArgumentError where one overflows."""
    return round_to("fold", old.astype(np.float64).reshape(-1) * more, old.dtype)


def rescale(graph: Graph, source: ir.Node, node: ir.Node, index: int, linear: Linear) -> None:
    """Give ``node`` a DequantizeLinear of its own, with the scales of ``linear`` in it."""
    scale = graph.constants.floats(source.inputs[1])
    assert not isinstance(scale, Refused)
    assert linear.out_scale is not None
    scales = _scales(scale, linear.out_scale)
    inputs = [source.inputs[0], graph.constants.add(ir.Tensor(scales), f"{source.inputs[1].name}")]  # type: ignore[union-attr]
    if len(source.inputs) > 2 and source.inputs[2] is not None:
        zero = graph.constants.array(source.inputs[2])
        assert not isinstance(zero, Refused)
        zeros = np.broadcast_to(zero.reshape(-1), scales.shape)
        inputs.append(graph.constants.add(ir.Tensor(np.ascontiguousarray(zeros)), f"{source.inputs[2].name}"))
    old = node.inputs[index]
    assert old is not None
    name = graph.fresh_node_name(f"{source.name or old.name}_folded")
    fresh = ir.node("DequantizeLinear", inputs, name=name)
    assert linear.out_axis is not None
    fresh.attributes.update(source.attributes)
    fresh.attributes.add(ir.AttrInt64("axis", linear.out_axis))
    fresh.outputs[0].name = graph.constants.fresh_name(str(old.name))
    fresh.outputs[0].type, fresh.outputs[0].shape = old.type, old.shape
    assert node.graph is not None
    node.graph.insert_before(node, fresh)
    node.replace_input_with(index, fresh.outputs[0])
    graph.constants.drop_unused([old])
