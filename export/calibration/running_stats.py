"""The running statistics of a BatchNormalization node: read, written for this node alone, or why they cannot be."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import onnx_ir as ir

from export.folding.constants import Constants
from export.folding.graph import name_of
from export.folding.refused import Refused

DTYPES = ("float16", "float32", "float64")
MEAN, VAR = 3, 4  # inputs of the node


@dataclass(frozen=True)
class RunningStats:
    """A batch norm on axis 1 with constant statistics; mean, var: (C,) in the dtype in which they are stored.

    recovers: why the node does not compute with proper statistics before it is calibrated, or None.
    """

    node: ir.Node
    x: ir.Value
    mean: np.ndarray
    var: np.ndarray
    eps: float
    recovers: str | None

    @property
    def name(self) -> str:
        """The node's name, or its output's where it has none."""
        return name_of(self.node)

    @property
    def key(self) -> str:
        """The name of the node's output, the only one of its kind in a graph."""
        return str(self.node.outputs[0].name)

    @classmethod
    def read(cls, constants: Constants, node: ir.Node) -> Self | Refused:
        """The node's statistics; Refused where they are not constant vectors or are not used in inference."""
        refused = _refused(constants.model, node)
        if refused is not None:
            return refused
        arrays = []
        for index, role in ((MEAN, "mean"), (VAR, "variance")):
            array = constants.array(node.inputs[index])
            if isinstance(array, Refused):
                return Refused(f"its {role} {array.reason}")
            if array.dtype.name not in DTYPES or array.ndim != 1:
                return Refused(
                    f"its {role} is {array.dtype} of shape {array.shape}, not a vector of {', '.join(DTYPES)}"
                )
            arrays.append(array)
        mean, var = arrays
        if mean.shape != var.shape:
            return Refused(f"its mean and variance have the shapes {mean.shape} and {var.shape}, not one")
        eps = node.attributes.get("epsilon")
        recovers = None
        if is_training(node):
            recovers = "it was in training mode"
        elif not mean.any() and (var == 1).all():
            recovers = "it had its first statistics, mean 0 and variance 1"
        x = node.inputs[0]
        assert x is not None
        return cls(node, x, mean, var, float(np.float32(1e-5 if eps is None else eps.as_float())), recovers)

    def write(self, constants: Constants, mean: np.ndarray, var: np.ndarray) -> None:
        """Give the node statistics of its own; others keep what they read."""
        write_statistics(constants, self.node, mean, var)

    def to_inference(self) -> None:
        """Leave training mode: drop the attribute and the outputs that nothing reads."""
        self.node.attributes.pop("training_mode", None)
        self.node.resize_outputs(1)


def is_training(node: ir.Node) -> bool:
    """Whether a batch norm computes with the batch's statistics: by attribute, before opset 14 by further outputs."""
    mode = node.attributes.get("training_mode")
    return bool(mode is not None and mode.as_int()) or any(output.name for output in node.outputs[1:])


def write_statistics(constants: Constants, node: ir.Node, mean: np.ndarray, var: np.ndarray) -> None:
    """Set the mean and the variance of one batch norm, copied where another node reads the same constant."""
    for index, array, role in ((MEAN, mean, "mean"), (VAR, var, "var")):
        value = node.inputs[index]
        assert value is not None
        own = value.is_initializer() and len(value.uses()) == 1 and not value.is_graph_output()
        if own and value.graph is constants.model.graph:
            value.const_value = ir.tensor(array, name=value.name)
        else:
            constants.replace(node, index, ir.tensor(array), value.name or f"{name_of(node)}.{role}")


def _refused(model: ir.Model, node: ir.Node) -> Refused | None:
    if node.graph is not model.graph:
        return Refused("it is inside a subgraph or a function")
    imports = model.graph.opset_imports
    if imports.get("", imports.get("ai.onnx", 1)) < 7:
        return Refused("its opset is below 7; convert the model to a newer one")
    spatial = node.attributes.get("spatial")
    if spatial is not None and not spatial.as_int():
        return Refused("it has statistics for every position (spatial = 0), not for every channel")
    if any(output.uses() or output.is_graph_output() for output in node.outputs[1:]):
        return Refused("its further outputs are used")
    if len(node.inputs) != 5 or any(value is None for value in node.inputs):
        return Refused(f"it has {sum(value is not None for value in node.inputs)} inputs, not 5")
    return None
