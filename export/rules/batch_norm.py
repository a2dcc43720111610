"""A BatchNormalization node that is a constant affine map, or the reason why it is not one.

Opset 14 has training_mode; 7 and 9 are in training if further outputs are named; before 7 is_test says so, and
before 9 spatial = 0 has one statistic for every element.
"""

import numpy as np
import onnx_ir as ir

from export.affine import Affine
from export.graph import Graph, Held, attribute
from export.refused import Refused
from fastbn.functional.fold import scale_and_shift


def read_batch_norm(graph: Graph, node: ir.Node) -> Held | Refused:
    """The affine of the node, on axis 1."""
    if graph.opset >= 14 and attribute(node, "training_mode", 0):
        return Refused("it is in training mode: its statistics are the batch's; set training_mode to 0 or calibrate")
    if graph.opset < 7 and not attribute(node, "is_test", 0):
        return Refused("it is in training mode: is_test is 0")
    if graph.opset < 9 and not attribute(node, "spatial", 1):
        return Refused("it is not spatial: it has statistics for every element, not for every channel")
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return Refused("its further outputs are used")
    if len(node.inputs) != 5 or node.inputs[0] is None:
        return Refused(f"it has {len(node.inputs)} inputs, not 5")
    arrays: list[np.ndarray] = []
    for value, role in zip(node.inputs[1:5], ("scale", "bias", "mean", "variance"), strict=True):
        array = graph.constants.floats(value)
        if isinstance(array, Refused):
            return Refused(f"its {role} {array.reason}")
        if array.ndim != 1:
            return Refused(f"its {role} has shape {array.shape}, not one axis")
        arrays.append(array)
    if len({array.shape for array in arrays}) > 1:
        return Refused(f"its constants have the shapes {[array.shape for array in arrays]}, not one")
    gamma, beta, mean, var = (array.astype(np.float64) for array in arrays)
    # The attribute is a float32, and so is its default.
    eps = float(np.float32(attribute(node, "epsilon", 1e-5)))
    if not (var + eps > 0).all():
        channel = int(np.argmax(~(var + eps > 0)))
        return Refused(f"its variance plus epsilon is {var[channel] + eps:g} in channel {channel}, not positive")
    scale, shift = scale_and_shift("fold", mean, var, eps, gamma, beta)
    if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
        return Refused("its constants do not give finite numbers")
    channels = graph.length(node.inputs[0], 1) if mean.size == 1 else None
    if channels not in (None, 1):
        return Refused(f"it has one channel, its input {channels}")
    return Held(Affine.of(scale, shift, 1), arrays[0].dtype)
