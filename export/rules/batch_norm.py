"""A BatchNormalization node that is a constant affine map per channel, or the reason why it is not one."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import onnx_ir as ir

from export.constants import constant_array
from export.refused import Refused

FLOATS = ("float16", "float32", "float64")


@dataclass(frozen=True)
class BatchNormNode:
    """y = (x - mean) / sqrt(var + eps) * gamma + beta on axis 1; arrays are float64."""

    node: ir.Node
    x: ir.Value
    gamma: np.ndarray
    beta: np.ndarray
    mean: np.ndarray
    var: np.ndarray
    eps: float

    @classmethod
    def read(cls, model: ir.Model, node: ir.Node) -> Self | Refused:
        """The node's constants; Refused in training mode, in subgraphs, and where they are not constant."""
        if node.graph is not model.graph:
            return Refused("it is inside a subgraph or a function")
        training = node.attributes.get("training_mode")
        if training is not None and training.as_int():
            return Refused("it is in training mode: its statistics are the batch's")
        imports = model.graph.opset_imports
        if imports.get("", imports.get("ai.onnx", 1)) < 9:
            return Refused("its opset is below 9; convert the model to a newer one")
        if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
            return Refused("its further outputs are used")
        if len(node.inputs) != 5 or node.inputs[0] is None:
            return Refused(f"it has {len(node.inputs)} inputs, not 5")
        arrays: list[np.ndarray] = []
        for value, role in zip(node.inputs[1:5], ("scale", "bias", "mean", "variance"), strict=True):
            array = constant_array(model, value)
            if isinstance(array, Refused):
                return Refused(f"its {role} {array.reason}")
            if array.dtype.name not in FLOATS or array.ndim != 1:
                return Refused(f"its {role} is {array.dtype} of shape {array.shape}, not a vector of floats")
            arrays.append(array.astype(np.float64))
        if len({array.shape for array in arrays}) > 1:
            return Refused(f"its constants have the shapes {[array.shape for array in arrays]}, not one")
        eps = node.attributes.get("epsilon")
        gamma, beta, mean, var = arrays
        # The attribute is a float32, and so is its default.
        spread = float(np.float32(1e-5 if eps is None else eps.as_float()))
        return cls(node, node.inputs[0], gamma, beta, mean, var, spread)

    def take_over(self, producer: ir.Node) -> None:
        """Remove the node: the producer's output takes its output's place, name and type."""
        old, new = self.node.outputs[0], producer.outputs[0]
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        name, shape, kind = old.name, old.shape, old.type
        graph = self.node.graph
        assert graph is not None
        graph.remove(self.node, safe=True)
        old.name = None
        new.name, new.shape, new.type = name, shape or new.shape, kind or new.type
