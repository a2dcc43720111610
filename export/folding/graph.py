"""A model while its batch norms are folded: what the rules may ask of it, and the changes that wait to be written."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from export.folding.affine import Affine
from export.folding.constants import Constants, opset_of
from export.folding.linear import Linear
from export.folding.refused import Refused
from export.folding.shapes import Shape, Shapes
from fastbn.errors import ModelError

Edit = Callable[[], None]


@dataclass
class Step:
    """A rule's answer: how an affine goes on, or ends, at one node.

    onward: values that must hold the affine next, on the same side of the search. edits: changes to make once the
    whole way is found. into: the node, where it ends here. otherwise: what to do if the way onward is barred.
    once: whether the step is wrong where two ways of one plan come to the node, as from both outputs of a Split.
    """

    onward: list[tuple[ir.Value, Affine]] = field(default_factory=list)
    edits: list[Edit] = field(default_factory=list)
    into: list[ir.Node] = field(default_factory=list)
    otherwise: "Step | None" = None
    once: bool = False


@dataclass(frozen=True)
class Held:
    """What an affine node is, or has become: its affine, the dtype of its constants, which input it acts on."""

    affine: Affine
    dtype: np.dtype
    index: int = 0

    def input_of(self, node: ir.Node) -> ir.Value:
        """What ``node`` acts on."""
        value = node.inputs[self.index]
        assert value is not None
        return value


class Graph:
    """One model and the changes that wait to be written.

    linears, affines: what layers and affine nodes have become. left_alone: nodes of batch norms that nobody may touch.
    changed: values that hold other numbers than before, under their old name.
    """

    def __init__(self, model: ir.Model, *, overridable: bool = False) -> None:
        self.model = model
        self.opset = opset_of(model)
        self.constants = Constants(model, overridable)
        self.linears: dict[ir.Node, Linear] = {}
        self.affines: dict[ir.Node, Held] = {}
        self.left_alone: set[ir.Node] = set()
        self.changed: set[ir.Value] = set()
        self.shapes = Shapes(model, self.constants.array)
        self._node_names: set[str | None] | None = None
        self._shifted: dict[tuple[ir.Value, int | None, bytes], ir.Value] = {}

    def shape(self, value: ir.Value) -> Shape | None:
        """The proved shape of ``value``: lengths, names of lengths, None; None without even a rank."""
        return self.shapes.of(value)

    def rank(self, value: ir.Value) -> int | None:
        """The number of axes of ``value``, None where it is not known."""
        shape = self.shapes.of(value)
        return None if shape is None else len(shape)

    def length(self, value: ir.Value, axis: int) -> int | None:
        """The length of one axis, None where it is not known."""
        shape = self.shapes.of(value)
        size = shape[axis] if shape is not None and axis < len(shape) else None
        return size if isinstance(size, int) else None

    def read_by_others(self, value: ir.Value, node: ir.Node) -> Refused | None:
        """Why the content of ``value`` cannot change for ``node`` alone; who reads its shape only does not count."""
        who = describe(value.producer())
        if value.is_graph_output():
            return Refused(f"the output of {who} is an output of the graph, too")
        readers = [use for use in value.uses() if not reads_shape(use.node)]
        if any(use.node.graph is not node.graph for use in readers):
            return Refused(f"the output of {who} is read inside a subgraph")
        if len(readers) != 1:
            return Refused(f"the output of {who} is read by {len(readers)} nodes, not by this one alone")
        return None

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """The type of the elements of ``value``, None where it is not known."""
        return self.shapes.dtype(value)

    def hold(self, node: ir.Node, held: Held) -> None:
        """``node``, an affine node, becomes ``held``."""
        self.affines[node] = held

    def bypass(self, node: ir.Node, index: int, *, renamed: bool = True) -> None:
        """Remove ``node``: whoever read it reads its input, which takes the output's name and type if ``renamed``.

        An input that has to keep its name keeps it; an output of the graph is then made by an Identity.
        """
        old, x = node.outputs[0], node.inputs[index]
        assert x is not None
        producer = x.producer()
        if renamed and (producer is None or producer.graph is not node.graph or x.is_graph_output()):
            renamed = False
            if old.is_graph_output():
                self._name_again(old, x)
        constants = [value for value in node.inputs if value is not x]
        old.replace_all_uses_with(x, replace_graph_outputs=renamed)
        name, shape, kind = old.name, old.shape, old.type
        assert node.graph is not None
        node.graph.remove(node, safe=True)
        self.affines.pop(node, None)
        if renamed:
            old.name = None
            x.name, x.shape, x.type = name, shape or x.shape, kind or x.type
        self.constants.drop_unused(constants)

    def _name_again(self, old: ir.Value, x: ir.Value) -> None:
        """An Identity of ``x`` takes the name and the readers of ``old``."""
        node = old.producer()
        assert node is not None
        assert node.graph is not None
        fresh = ir.node("Identity", [x], name=self.fresh_node_name(f"{node.name or old.name}.identity"))
        output = fresh.outputs[0]
        node.graph.insert_before(node, fresh)
        old.replace_all_uses_with(output, replace_graph_outputs=True)
        name, old.name = old.name, None
        output.name, output.shape, output.type = name, old.shape, old.type
        self.shapes.same(old, output)

    def remove(self, node: ir.Node) -> None:
        """Remove ``node``, which nothing reads any more, and its constants."""
        self.linears.pop(node, None)
        self.affines.pop(node, None)
        constants = list(node.inputs)
        if node.graph is not None:
            node.graph.remove(node, safe=True)
        self.constants.drop_unused(constants)

    def shift_input(self, node: ir.Node, offset: np.ndarray, axis: int | None) -> None:
        """Put an Add of ``offset`` on ``axis`` in front of input 0 of ``node``; nodes with the same wish share it."""
        value = node.inputs[0]
        assert value is not None
        key = (value, axis, offset.tobytes())
        shared = self._shifted.get(key)
        if shared is None or shared.producer() in self.affines or not shared.uses():
            rank = self.rank(value)
            shape = (1,) if axis is None or rank is None else along(rank, axis, offset.size)
            constant = self.constants.add(ir.Tensor(offset.reshape(shape)), f"{value.name}.offset")
            shared = self._shifted[key] = self._inserted("Add", [value, constant], f"{value.name}.shifted")
        node.replace_input_with(0, shared)

    def fresh_node_name(self, wanted: str) -> str:
        """``wanted``, numbered if need be."""
        if self._node_names is None:
            self._node_names = {node.name for node in ir.traversal.RecursiveGraphIterator(self.model.graph)}
        name, number = wanted, 1
        while name in self._node_names:
            number += 1
            name = f"{wanted}_{number}"
        self._node_names.add(name)
        return name

    def _inserted(self, op_type: str, inputs: list[ir.Value], name: str) -> ir.Value:
        """A new node right behind its first input, whose type and shape its output has; no reader is changed."""
        fresh = self.constants.fresh_name(name)
        node = ir.node(op_type, inputs, name=self.fresh_node_name(fresh))
        node.outputs[0].name, node.outputs[0].type = fresh, inputs[0].type
        node.outputs[0].shape = inputs[0].shape
        producer = inputs[0].producer()
        assert producer is not None
        assert producer.graph is not None
        producer.graph.insert_after(producer, node)
        self.shapes.same(inputs[0], node.outputs[0])
        return node.outputs[0]

    def insert_after(self, value: ir.Value, op_type: str, constant: ir.Value) -> ir.Value:
        """A new node behind ``value``, which gets its name, readers and place among the graph's outputs."""
        producer = value.producer()
        assert producer is not None
        assert producer.graph is not None
        node = ir.node(op_type, [value, constant])
        new = node.outputs[0]
        producer.graph.insert_after(producer, node)
        value.replace_all_uses_with(new, replace_graph_outputs=True)
        node.replace_input_with(0, value)
        name = value.name
        value.name = self.constants.fresh_name(f"{name}.{producer.op_type.lower()}")
        new.name, new.type, new.shape = name, value.type, value.shape
        node.name = self.fresh_node_name(f"{producer.name or name}.{op_type.lower()}")
        if value in self.changed:
            self.changed.add(new)
        self.shapes.same(value, new)
        return new


def along(rank: int, axis: int, channels: int) -> tuple[int, ...]:
    """The shape of a vector on ``axis`` that broadcasts against arrays of ``rank`` axes."""
    return (channels,) + (1,) * (rank - 1 - axis)


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """The value of an attribute, or ``default``. Raises ModelError where it is of another kind than ``default``."""
    found = node.attributes.get(name)
    if found is None:
        return default
    if isinstance(default, (int, float, str)) and type(found.value) is not type(default):
        kind = type(default).__name__
        raise ModelError(f"{describe(node)}: {name} must be of type {kind}, got {type(found.value).__name__}")
    return found.value


def name_of(node: ir.Node) -> str:
    """What a batch norm is called in the report."""
    return node.name or node.outputs[0].name or "batch norm"


def describe(node: ir.Node | None) -> str:
    """Operator and name of a node, for reports."""
    return "an input of the graph" if node is None else f"{node.op_type} {node.name or ''}".rstrip()


def reads_shape(node: ir.Node) -> bool:
    """Whether a node asks for lengths only."""
    return node.op_type in ("Shape", "Size") and node.domain in ("", "ai.onnx")


def is_onnx(node: ir.Node) -> bool:
    """Whether an operator is one of ONNX's own."""
    return node.domain in ("", "ai.onnx")
