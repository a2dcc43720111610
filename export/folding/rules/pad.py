"""Pad: s pad(x, c) + t = pad(s x + t, s c + t), so the constant must remain one number for all channels.

Forward, pad(s x + t, c) = s pad(x, (c - t) / s) + t; where that is not one number, and c = 0, x + t / s goes in front
and s alone passes. The other modes repeat elements, which keep their channels.
"""

import numpy as np
import onnx_ir as ir

from export.folding.affine import Affine
from export.folding.graph import Edit, Graph, Step, attribute, describe
from export.folding.refused import Refused
from export.folding.rules.layer import offset_edits
from fastbn.errors import FastbnError
from fastbn.functional.fold import round_to


def backward(graph: Graph, node: ir.Node, output: int, affine: Affine) -> Step | Refused:
    """The input holds the affine, and the constant is mapped."""
    value = node.inputs[0]
    assert value is not None
    constant = _constant(graph, node, value, affine)
    if isinstance(constant, Refused):
        return constant
    if constant is None:
        return Step(onward=[(value, affine)])
    mapped = affine.scale * constant + affine.shift
    if not (mapped == mapped[0]).all():
        return Refused(f"{describe(node)} pads all channels with {constant:g}, which the batch norm maps apart")
    edits = _changed(graph, node, value, constant, float(mapped[0]))
    return edits if isinstance(edits, Refused) else Step([(value, affine)], edits, once=True)


def forward(graph: Graph, node: ir.Node, index: int, affine: Affine) -> Step | Refused:
    """The output hands it on, and the constant is mapped back."""
    value = node.inputs[0]
    assert value is not None
    if index != 0:
        return Refused(f"{describe(node)} reads it as a number of elements")
    constant = _constant(graph, node, value, affine)
    if isinstance(constant, Refused):
        return constant
    if constant is None or (constant == 0 and affine.linear):
        return Step(onward=[(node.outputs[0], affine)])
    if (affine.scale != 0).all():
        mapped = (constant - affine.shift) / affine.scale
        if (mapped == mapped[0]).all():
            edits = _changed(graph, node, value, constant, float(mapped[0]))
            return edits if isinstance(edits, Refused) else Step([(node.outputs[0], affine)], edits, once=True)
    dtype = graph.dtype(value)
    if constant != 0 or dtype is None:
        return Refused(f"{describe(node)} pads all channels with {constant:g}, which the batch norm maps apart")
    edits = offset_edits(graph, node, affine, dtype.numpy())
    return edits if isinstance(edits, Refused) else Step([(node.outputs[0], affine.only_scale())], edits)


def _constant(graph: Graph, node: ir.Node, value: ir.Value, affine: Affine) -> float | Refused | None:
    """The number that is padded with; None where the affine passes whatever it is."""
    pads = _numbers(graph, node, 1, "pads" if graph.opset > 1 else "paddings")
    if pads is None or (len(node.inputs) > 3 and node.inputs[3] is not None):
        return Refused(f"{describe(node)}: how much it pads is not constant")
    rank = len(pads) // 2
    if not any(pads):
        return None
    if attribute(node, "mode", "constant") != "constant":
        if affine.axis is not None and (pads[affine.axis] or pads[affine.axis + rank]):
            return Refused(f"{describe(node)} repeats channels")
        return None
    if any(number < 0 for number in pads) and affine.axis is not None and pads[affine.axis] < 0:
        return Refused(f"{describe(node)} cuts channels off")
    if affine.axis is not None and (pads[affine.axis] or pads[affine.axis + rank]):
        return Refused(f"{describe(node)} pads channels")
    numbers = _numbers(graph, node, 2, "value")
    return Refused(f"{describe(node)}: what it pads with is not constant") if numbers is None else (numbers or [0.0])[0]


def _numbers(graph: Graph, node: ir.Node, index: int, name: str) -> list[float] | None:
    """An operand that newer operator sets have as an input and older ones as an attribute; empty where it is absent."""
    if len(node.inputs) > index and node.inputs[index] is not None:
        array = graph.constants.array(node.inputs[index])
        return None if isinstance(array, Refused) else [float(number) for number in array.reshape(-1)]
    found = attribute(node, name, ())
    return [float(number) for number in np.reshape(found, -1)]


def _changed(graph: Graph, node: ir.Node, value: ir.Value, old: float, new: float) -> list[Edit] | Refused:
    if new == old:
        return []
    dtype = graph.dtype(value)
    if dtype is None:
        return Refused(f"{describe(node)}: the type of its input is not known")
    try:
        rounded = round_to("fold", np.array(new), np.dtype(np.float32) if graph.opset < 11 else dtype.numpy())
    except FastbnError as error:
        return Refused(f"{describe(node)}: {error}")

    def commit() -> None:
        if graph.opset < 11:
            node.attributes.add(ir.AttrFloat32("value", float(rounded)))
            return
        graph.constants.replace(node, 2, ir.Tensor(rounded), f"{node.outputs[0].name}.value")

    return [commit]
