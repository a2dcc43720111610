"""What is known of a tensor that holds lengths: ONNX's inference loses them behind Slice, Gather and Concat."""

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from export.folding.refused import Refused

Shape = tuple[int | str | None, ...]  # a length, a name for one, or nothing known

DEEPEST = 50  # nodes between a Shape and a Reshape
MOST_AXES = 100  # elements of what can be a shape
SAME = frozenset({"Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape", "Flatten"})
EXACT = frozenset({ir.DataType.INT32, ir.DataType.INT64, ir.DataType.FLOAT, ir.DataType.DOUBLE})  # for any length
ARITHMETIC = frozenset({"Add", "Sub", "Mul", "Div", "Mod"})


class ShapeValues:
    """Lengths as they are computed in a graph. known: proved shapes; constant: the array behind a value, or Refused."""

    def __init__(self, known: dict[ir.Value, Shape], constant: Callable[[ir.Value], np.ndarray | Refused]) -> None:
        self._known = known
        self._constant = constant

    def reshaped(self, node: ir.Node) -> Shape | None:
        """The shape of a Reshape's output, from the lengths that it is given; None without even a rank."""
        data, lengths = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
        wanted = None if lengths is None else self.elements(lengths)
        if wanted is None or data is None:
            return None
        source = self._known.get(data)
        copies = node.attributes.get_int("allowzero", 0) == 0
        shape: list[int | str | None] = []
        for axis, length in enumerate(wanted):
            if length == 0 and copies:
                shape.append(source[axis] if source is not None and axis < len(source) else None)
            else:
                shape.append(None if length == -1 else length)
        return tuple(shape)

    def elements(self, value: ir.Value, depth: int = 0) -> Shape | None:
        """The elements of a scalar or a vector of lengths; None where not even their number is known."""
        if len(self._known.get(value, ())) > 1:
            return None
        array = self._constant(value)
        if not isinstance(array, Refused):
            return tuple(int(number) for number in array.reshape(-1)) if array.size < MOST_AXES else None
        node = value.producer()
        found = None if node is None or depth > DEEPEST else self._computed(node, depth + 1)
        return self._unknown(value) if found is None else found

    def _computed(self, node: ir.Node, depth: int) -> Shape | None:
        if node.op_type == "Shape":
            shape = self._known.get(node.inputs[0]) if node.inputs[0] is not None else None
            begin, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", None)
            return None if shape is None else shape[begin:end]
        inner = [self.elements(value, depth) for value in node.inputs if value is not None]
        parts = [part for part in inner if part is not None]
        if len(parts) < len(inner) or not parts:
            return None
        if node.op_type == "Concat":
            return tuple(length for part in parts for length in part)
        if node.op_type == "Cast" and node.attributes.get_int("to", 0) not in EXACT:
            return None
        if node.op_type in SAME:
            return parts[0]
        if node.op_type in ARITHMETIC:
            return (None,) * max(len(part) for part in parts)
        if node.op_type == "Gather":
            return tuple(_at(parts[0], index) for index in parts[1])
        numbers = [part[0] for part in parts[1:3] if len(part) == 1 and isinstance(part[0], int)]
        if node.op_type == "Slice" and len(parts) < 5 and len(numbers) == 2:
            return parts[0][numbers[0] : numbers[1]]
        return None

    def _unknown(self, value: ir.Value) -> Shape | None:
        """As many unknown elements as the tensor is known to hold."""
        shape = self._known.get(value)
        if shape == ():
            return (None,)
        return (None,) * shape[0] if shape is not None and len(shape) == 1 and isinstance(shape[0], int) else None


def _at(lengths: Shape, index: int | str | None) -> int | str | None:
    return lengths[index] if isinstance(index, int) and -len(lengths) <= index < len(lengths) else None
