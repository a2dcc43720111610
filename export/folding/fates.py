"""What became of every batch norm."""

import math
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir


@dataclass(frozen=True)
class FoldSite:
    """What became of one batch norm, or of a chain of Mul, Add, Sub, Div with constants that is one.

    batch_norm: the name of its node, or of its output. into: the nodes that absorbed it; reason: why it stays.
    how: "backward", "forward", or "merged" with other nodes of its kind. operators: what it was spelled with.
    values: those nearest behind it that hold the same numbers in the source and in the folded graph.
    """

    batch_norm: str
    into: str | None = None
    reason: str | None = None
    how: str | None = None
    operators: str = "BatchNormalization"
    values: tuple[str, ...] = ()


@dataclass(frozen=True)
class Size:
    """Nodes; parameters, which are the elements of initialisers and Constant nodes; and their bytes."""

    nodes: int
    parameters: int
    bytes: int


@dataclass(frozen=True)
class FoldReport:
    """Every batch norm of a model and its fate, and the model's size before, with its functions inlined, and after."""

    sites: tuple[FoldSite, ...]
    before: Size
    after: Size

    @property
    def folded(self) -> int:
        """How many batch norms are gone."""
        return sum(site.into is not None for site in self.sites)


def size_of(model: ir.Model) -> Size:
    """The size of a model, subgraphs included; a call of a function is one node."""
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    graphs = [model.graph, *model.graph.subgraphs()]
    tensors: list[Any] = [value.const_value for graph in graphs for value in graph.initializers.values()]
    tensors += [ir.convenience.get_const_tensor(node.outputs[0]) for node in nodes if node.op_type == "Constant"]
    sizes = [(math.prod(tensor.shape.numpy()), tensor.dtype.itemsize) for tensor in tensors if tensor is not None]
    return Size(len(nodes), sum(size for size, _ in sizes), sum(math.ceil(size * width) for size, width in sizes))
