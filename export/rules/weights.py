"""The weight and bias of a layer with inputs (x, weight, bias), read as float64 and written back in their own dtype."""

import numpy as np
import onnx_ir as ir

from export.constants import constant_array, replace_constant
from export.refused import Refused
from export.rules.batch_norm import FLOATS, BatchNormNode
from fastbn.functional.fold import round_to


def read_layer(model: ir.Model, norm: BatchNormNode, layer: ir.Node) -> tuple[np.ndarray, np.ndarray | None] | Refused:
    """Weight and bias as float64, the bias None where there is none; or why they cannot be changed."""
    if len(layer.inputs) < 2:
        return Refused(f"{layer.name}: it has no weight")
    output = layer.outputs[0]
    if output.is_graph_output():
        return Refused(f"{layer.name}: its output is an output of the graph, too")
    if len(output.uses()) != 1:
        return Refused(f"{layer.name}: its output is read by {len(output.uses())} nodes, not by this one alone")
    weight = constant_array(model, layer.inputs[1])
    if isinstance(weight, Refused):
        return Refused(f"{layer.name}: its weight {weight.reason}")
    if weight.dtype.name not in FLOATS:
        return Refused(f"{layer.name}: its weight is {weight.dtype}, not one of {', '.join(FLOATS)}")
    value = layer.inputs[2] if len(layer.inputs) > 2 else None
    if value is None or value.name == "":
        return weight.astype(np.float64), None
    bias = constant_array(model, value)
    if isinstance(bias, Refused):
        return Refused(f"{layer.name}: its bias {bias.reason}")
    return weight.astype(np.float64), bias.astype(np.float64)


def write_layer(model: ir.Model, layer: ir.Node, weight: np.ndarray, bias: np.ndarray) -> None:
    """Give ``layer`` new constants in its weight's dtype. Raises ArgumentError, before any change, on overflow."""
    stored = constant_array(model, layer.inputs[1])
    assert not isinstance(stored, Refused)
    arrays = [round_to("fold", np.ascontiguousarray(array), stored.dtype) for array in (weight, bias)]
    if len(layer.inputs) < 3:
        layer.resize_inputs(3)
    name = (layer.inputs[1].name if layer.inputs[1] is not None else None) or "weight"
    replace_constant(model, layer, 1, arrays[0], name)
    old = layer.inputs[2]
    replace_constant(
        model, layer, 2, arrays[1], old.name if old is not None and old.name else name.removesuffix(".weight") + ".bias"
    )
