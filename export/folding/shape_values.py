"""What is known of a tensor that holds lengths: ONNX's inference loses them behind Slice, Gather and Concat."""

import onnx_ir as ir

Shape = tuple[int | str | None, ...]  # a length, a name for one, or nothing known
Shapes = dict[ir.Value, Shape]

DEEPEST = 50  # nodes between a Shape and a Reshape
SAME = frozenset({"Identity", "Cast", "Unsqueeze", "Squeeze", "Reshape", "Flatten"})


def reshaped(node: ir.Node, known: Shapes) -> Shape | None:
    """The shape of a Reshape's output, from the lengths that it is given; None without even a rank."""
    data, lengths = node.inputs[0], node.inputs[1] if len(node.inputs) > 1 else None
    wanted = None if lengths is None else elements(lengths, known)
    if wanted is None or data is None:
        return None
    source = known.get(data)
    copies = node.attributes.get_int("allowzero", 0) == 0
    shape: list[int | str | None] = []
    for axis, length in enumerate(wanted):
        if length == 0 and copies:
            shape.append(source[axis] if source is not None and axis < len(source) else None)
        else:
            shape.append(None if length == -1 else length)
    return tuple(shape)


def elements(value: ir.Value, known: Shapes, depth: int = 0) -> Shape | None:
    """The elements of a scalar or a vector of lengths; None where not even their number is known."""
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is not None and not value.is_graph_input():
        return tuple(int(number) for number in tensor.numpy().reshape(-1)) if tensor.size < 100 else None
    node = value.producer()
    if node is None or depth > DEEPEST:
        return _unknown(value, known)
    inner = [None if v is None else elements(v, known, depth + 1) for v in node.inputs if node.op_type != "Shape"]
    found = _from_node(node, inner, known)
    return _unknown(value, known) if found is None else found


def _from_node(node: ir.Node, inner: list[Shape | None], known: Shapes) -> Shape | None:
    first = inner[0] if inner else None
    if node.op_type == "Shape":
        shape = known.get(node.inputs[0]) if node.inputs[0] is not None else None
        begin, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", None)
        return None if shape is None else shape[begin:end]
    if node.op_type == "Concat":
        parts = [part for part in inner if part is not None]
        return tuple(length for part in parts for length in part) if len(parts) == len(inner) else None
    if first is None:
        return None
    if node.op_type in SAME:
        return first
    if node.op_type == "Gather" and inner[1] is not None:
        return tuple(_at(first, index) for index in inner[1])
    if node.op_type == "Slice":
        bounds = [part[0] for part in inner[1:3] if part is not None and len(part) == 1]
        numbers = [bound for bound in bounds if isinstance(bound, int)]
        if len(inner) < 5 and len(numbers) == 2:
            return first[numbers[0] : numbers[1]]
    return None


def _at(lengths: Shape, index: int | str | None) -> int | str | None:
    return lengths[index] if isinstance(index, int) and -len(lengths) <= index < len(lengths) else None


def _unknown(value: ir.Value, known: Shapes) -> Shape | None:
    """As many unknown elements as the tensor is known to hold."""
    shape = known.get(value)
    if shape == ():
        return (None,)
    return (None,) * shape[0] if shape is not None and len(shape) == 1 and isinstance(shape[0], int) else None
