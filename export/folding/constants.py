"""Constants of a graph: read wherever they are, changed only for the node that asks."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir

from export.folding.refused import Refused

FLOATS = tuple(getattr(ir.DataType, name).numpy() for name in ("FLOAT16", "BFLOAT16", "FLOAT", "DOUBLE"))
LARGEST = 2**28  # elements of a constant that has to be computed
DEEPEST = 1000  # operands of such a constant that wait

# What may lie between a stored tensor and the node that reads it.
COMPUTED = frozenset(
    {"Identity", "Cast", "Unsqueeze", "Squeeze", "Transpose", "Reshape", "Flatten", "Concat", "Slice", "Gather"}
    | {"Expand", "ConstantOfShape", "Shape", "Add", "Sub", "Mul", "Div", "Neg", "Sqrt", "Reciprocal", "Pow", "Exp"}
    | {
        "Abs",
        "Mod",
        "Floor",
        "Ceil",
        "Min",
        "Max",
        "DequantizeLinear",
        "ReduceL1",
        "ReduceL2",
        "ReduceSum",
        "ReduceSumSquare",
        "ReduceMean",
        "ReduceMax",
    }
)


class Constants:
    """The constants of one model. ``overridable``: defaults of inputs count as constants, too."""

    def __init__(self, model: ir.Model, overridable: bool = False) -> None:
        self.model = model
        self._overridable = overridable or model.ir_version < 4  # before, every initialiser had to be an input
        self._computed: dict[ir.Value, np.ndarray | Refused] = {}
        self._names: set[str | None] | None = None

    def array(self, value: ir.Value | None) -> np.ndarray | Refused:
        """The array behind ``value``: stored, or computed from constants."""
        if value is None:
            return Refused("is missing")
        if value.is_graph_input() and not (value.is_initializer() and self._overridable):
            way_out = "; allow_overridable takes its default" if value.is_initializer() else ""
            return Refused(f"can be given by the caller: it is an input of the graph{way_out}")
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None:
            try:
                return tensor.numpy()
            except (AttributeError, TypeError, ValueError, OSError) as error:
                return Refused(f"cannot be read: {error}")
        if value not in self._computed:
            self._computed[value] = self._compute(value)
        return self._computed[value]

    def floats(self, value: ir.Value | None) -> np.ndarray | Refused:
        """The array as it is stored, refused unless its numbers are floating-point."""
        array = self.array(value)
        if not isinstance(array, Refused) and array.dtype not in FLOATS:
            return Refused(f"is {array.dtype}, not one of {', '.join(map(str, FLOATS))}")
        return array

    def _compute(self, value: ir.Value) -> np.ndarray | Refused:
        order = self._expression(value)
        if isinstance(order, Refused):
            return order
        arrays: dict[ir.Value, np.ndarray] = {}
        for node in order:
            inputs = [None if v is None else arrays[v] if v in arrays else self.array(v) for v in node.inputs]
            for array in inputs:
                if isinstance(array, Refused):
                    return array
            known = [array for array in inputs if isinstance(array, np.ndarray)]
            if _result_size(node, known) > LARGEST:
                return Refused(f"is computed by {node.op_type} with more than {LARGEST:,} elements")
            try:
                arrays[node.outputs[0]] = _evaluate(self.model, node, known)
            except Exception as error:  # whatever the evaluator meets in a broken expression
                return Refused(f"cannot be computed: {node.op_type}: {(str(error).splitlines() or [''])[0]}")
        return arrays[value]

    def _expression(self, value: ir.Value) -> list[ir.Node] | Refused:
        """The nodes between stored tensors and ``value``, in the order of computation."""
        order: dict[ir.Node, None] = {}
        waiting: list[tuple[ir.Value, bool]] = [(value, False)]
        while waiting:
            current, ready = waiting.pop()
            node = current.producer()
            if ready and node is not None:
                order[node] = None
            elif node in order or ir.convenience.get_const_tensor(current) is not None:
                continue
            elif node is None or not self._may_be_constant(current, node) or len(waiting) > DEEPEST:
                refused = Refused("is computed, not constant")
                # What waits for its operands depends on this one, and need not be looked at again.
                self._computed |= {dependent: refused for dependent, begun in waiting if begun}
                return refused
            else:
                waiting.append((current, True))
                waiting += [(inner, False) for inner in node.inputs if inner is not None]
        return list(order)

    def _may_be_constant(self, value: ir.Value, node: ir.Node) -> bool:
        known = self._computed.get(value)
        return node.op_type in COMPUTED and node.domain in ("", "ai.onnx") and not isinstance(known, Refused)

    def fresh_name(self, wanted: str) -> str:
        """``wanted``, or wanted_folded, numbered if need be, if some value is called so."""
        if self._names is None:
            self._names = _names(self.model.graph)
        name, number = wanted, 1
        while name in self._names:
            name = f"{wanted}_folded" if number == 1 else f"{wanted}_folded{number}"
            number += 1
        self._names.add(name)
        return name

    def replace(self, node: ir.Node, index: int, tensor: ir.TensorProtocol, name: str) -> None:
        """Give ``node`` its own initialiser at input ``index``; others keep what they read.

        It is called ``name`` if the old one was and nothing else reads it, else ``name_folded``, numbered if need be.
        """
        if index >= len(node.inputs):
            node.resize_inputs(index + 1)
        old, fresh = node.inputs[index], _unnamed(tensor)
        node.replace_input_with(index, fresh)
        self.drop_unused([old])
        self._register(fresh, name)

    def add(self, tensor: ir.TensorProtocol, name: str) -> ir.Value:
        """A new initialiser of the main graph, which subgraphs see as well."""
        value = _unnamed(tensor)
        self._register(value, name)
        return value

    def _register(self, value: ir.Value, name: str) -> None:
        value.name = self.fresh_name(name)
        graph = self.model.graph
        graph.initializers[value.name] = value
        if self.model.ir_version < 4:
            graph.inputs.append(value)

    def drop_unused(self, values: Iterable[ir.Value | None]) -> None:
        """Remove those constants among ``values`` that nothing reads any more, and what computes them alone."""
        waiting = list(values)
        while waiting:
            value = waiting.pop()
            if value is None or value.uses() or value.is_graph_output():
                continue
            node = value.producer()
            if node is not None and node.graph is not None and not any(v.uses() for v in node.outputs):
                if node.op_type == "Constant" or node.op_type in COMPUTED:
                    inputs = list(node.inputs)
                    self._forget(node.outputs[0].name)
                    node.graph.remove(node, safe=True)
                    waiting += inputs
            elif value.is_initializer() and value.graph is not None:
                graph = value.graph
                if value.is_graph_input():
                    graph.inputs.remove(value)
                del graph.initializers[str(value.name)]
                self._forget(value.name)

    def _forget(self, name: str | None) -> None:
        if self._names is not None:
            self._names.discard(name)


def _unnamed(tensor: ir.TensorProtocol) -> ir.Value:
    return ir.Value(shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor)


def initializer(name: str, array: np.ndarray) -> ir.Value:
    """A constant for a graph's ``initializers``."""
    tensor = ir.Tensor(array, name=name)
    return ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)


def _evaluate(model: ir.Model, node: ir.Node, arrays: list[np.ndarray]) -> np.ndarray:
    names = iter(f"i{index}" for index in range(len(arrays)))
    proto = ir.to_proto(node)
    proto.domain = ""
    del proto.input[:], proto.output[:]
    proto.input.extend("" if value is None else next(names) for value in node.inputs)
    proto.output.append("o")
    used = [name for name in proto.input if name]
    typed = [
        onnx.helper.make_tensor_value_info(name, int(ir.DataType.from_numpy(a.dtype)), a.shape)
        for name, a in zip(used, arrays, strict=True)
    ]
    output = onnx.helper.make_empty_tensor_value_info("o")
    graph = onnx.helper.make_graph([proto], "constant", typed, [output])
    # onnx's evaluator knows DequantizeLinear from 19 on, when it got more types.
    version = max(opset_of(model), 19 if node.op_type == "DequantizeLinear" else 1)
    opset = onnx.helper.make_opsetid("", version)
    session = onnx.reference.ReferenceEvaluator(onnx.helper.make_model_gen_version(graph, opset_imports=[opset]))
    with np.errstate(all="ignore"):
        outputs: Any = session.run(None, dict(zip(used, arrays, strict=True)))
    return np.asarray(outputs[0])


def opset_of(model: ir.Model) -> int:
    """The version of ONNX's own operators."""
    imports: dict[str, int] = dict(model.graph.opset_imports)
    return imports.get("", imports.get("ai.onnx", 1))


def _result_size(node: ir.Node, arrays: list[np.ndarray]) -> int:
    """A bound on the elements of the node's output, from the lengths alone."""
    if node.op_type == "ConstantOfShape":
        return math.prod(int(size) for size in arrays[0].reshape(-1))
    if node.op_type == "Expand":
        lengths = [*arrays[0].shape, *(max(1, int(size)) for size in arrays[1].reshape(-1))]
        return math.prod(lengths)
    if node.op_type in ("Add", "Sub", "Mul", "Div", "Pow", "Mod", "Min", "Max"):
        return math.prod(max(sizes) for sizes in zip(*_padded(arrays), strict=True))
    if node.op_type == "Gather":
        return arrays[0].size * max(1, arrays[1].size)
    return sum(array.size for array in arrays)


def _padded(arrays: list[np.ndarray]) -> list[tuple[int, ...]]:
    rank = max(array.ndim for array in arrays)
    return [(1,) * (rank - array.ndim) + array.shape for array in arrays]


def _names(graph: ir.Graph) -> set[str | None]:
    """Every name that a value has, in subgraphs too."""
    names = {value.name for value in graph.inputs} | set(graph.initializers)
    for node in ir.traversal.RecursiveGraphIterator(graph):
        names.update(output.name for output in node.outputs)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                inner = attribute.as_graph()
                names.update(value.name for value in inner.inputs)
                names.update(inner.initializers)
    return names
