"""The graph that layers are written to."""

from typing import Any

import numpy as np
import onnx_ir as ir

from export.folding.constants import initializer
from fastbn.nn.module import Module


class Emitter:
    """Collects nodes and initialisers; values and nodes are named by the path of the layer they come from."""

    def __init__(self, opset: int) -> None:
        self.opset = opset
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}

    def constant(self, name: str, array: np.ndarray) -> ir.Value:
        """A new initialiser."""
        self.initializers[name] = initializer(name, np.ascontiguousarray(array))
        return self.initializers[name]

    def node(self, path: str, op_type: str, inputs: list[ir.Value | None], **attributes: Any) -> ir.Value:
        """A node with one output; its name is ``path``, or ``path_2`` and so on where that is taken."""
        taken = {node.name for node in self.nodes}
        name, number = path, 1
        while name in taken:
            number += 1
            name = f"{path}_{number}"
        node = ir.node(op_type, inputs, attributes, name=name)
        node.outputs[0].name = f"{name}.output"
        node.outputs[0].type = inputs[0].type if inputs[0] is not None else None
        self.nodes.append(node)
        return node.outputs[0]


def join(path: str, name: str) -> str:
    """The name of what is called ``name`` in the layer at ``path``."""
    return f"{path}.{name}" if path else name


def parameters(emitter: Emitter, module: Module, path: str, *names: str) -> list[ir.Value | None]:
    """Initialisers for a layer's parameters and buffers, None for what it lacks."""
    arrays = [getattr(module, name) for name in names]
    return [
        None if array is None else emitter.constant(join(path, name), np.asarray(array))
        for name, array in zip(names, arrays, strict=True)
    ]
