"""Shapes of a graph's values, proved by ONNX's inference from the inputs' shapes and the constants alone."""

import math
from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from export.folding.affine import Affine
from export.folding.inference import infer
from export.folding.refused import Refused
from export.folding.shape_values import Shape, ShapeValues

Known = tuple[ir.Shape | None, ir.DataType | None]

ROUNDS = 100  # of inference, each with the shapes of Reshape that the one before made known
LARGEST_EXPANSION = 2**24  # elements of an affine written out over the axes that a Reshape joins


class Shapes:
    """Inferred once, when the first question comes; what the model claims of inner values is not believed."""

    def __init__(self, model: ir.Model, constant: Callable[[ir.Value], np.ndarray | Refused]) -> None:
        self._model = model
        self._constant = constant
        self._known: dict[ir.Value, Known] | None = None

    def of(self, value: ir.Value) -> Shape | None:
        """The shape of ``value``, None where not even its rank is known."""
        shape: ir.Shape | None
        if value.const_value is not None and not _overridable(value, self._constant):
            shape = ir.Shape(value.const_value.shape.numpy())
        elif value.producer() is None:
            shape = value.shape
        else:
            shape = self._inferred(value)[0]
        return _lengths(shape)

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """The type of the elements of ``value``, None where it is not known."""
        return value.dtype if value.producer() is None else self._inferred(value)[1]

    def _inferred(self, value: ir.Value) -> Known:
        if self._known is None:
            self._known = _infer(self._model, self._constant)
        return self._known.get(value, (None, None))

    def same(self, old: ir.Value, new: ir.Value) -> None:
        """``new`` has the shape of ``old``."""
        if self._known is not None and old in self._known:
            self._known[new] = self._known[old]


def _infer(model: ir.Model, constant: Callable[[ir.Value], np.ndarray | Refused]) -> dict[ir.Value, Known]:
    """ONNX's inference, and again with what it did not find out of a Reshape."""
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    values = [value for node in nodes for value in node.outputs]
    claimed = [(value, value.shape, value.type) for value in values]
    initializers = list(model.graph.initializers.items())
    defaults = [(value, value.const_value) for value in model.graph.inputs if _overridable(value, constant)]
    for value in values:
        value.shape = value.type = None
    for value, _ in defaults:  # inference would take the elements of a shape from them
        value.const_value = None
        del model.graph.initializers[str(value.name)]
    try:
        for _ in range(ROUNDS):
            infer(model)
            if not _complete(nodes, constant):
                break
        return {value: (value.shape, value.dtype) for value in values}
    finally:
        for value, shape, kind in claimed:
            value.shape, value.type = shape, kind
        for value, tensor in defaults:
            value.const_value = tensor
        model.graph.initializers.clear()
        model.graph.initializers.update(initializers)  # in their order


def _overridable(value: ir.Value, constant: Callable[[ir.Value], np.ndarray | Refused]) -> bool:
    """Whether ``value`` is a default that the caller may replace."""
    return value.is_graph_input() and value.is_initializer() and isinstance(constant(value), Refused)


def _complete(nodes: list[ir.Node], constant: Callable[[ir.Value], np.ndarray | Refused]) -> bool:
    """Give the outputs of Reshape the shapes that follow from computed lengths; whether there were any."""
    known = {
        value: _lengths(value.shape) for node in nodes for value in (*node.inputs, *node.outputs) if value is not None
    }
    shapes = {value: shape for value, shape in known.items() if shape is not None}
    lengths, more = ShapeValues(shapes, constant), False
    for node in nodes:
        output = node.outputs[0] if node.outputs else None
        if node.op_type != "Reshape" or output is None or output in shapes:
            continue
        found = lengths.reshaped(node)
        if found is not None:
            output.shape, more = ir.Shape(found), True
            output.type = output.type or node.inputs[0].type  # type: ignore[union-attr]
    return more


def _lengths(shape: ir.Shape | None) -> Shape | None:
    return None if shape is None else tuple(size if isinstance(size, int) else size.value for size in shape)


def carry(affine: Affine, source: Shape, target: Shape) -> Affine | None:
    """``affine`` on an array of shape ``source`` as one on its reshape to ``target``; None without proof.

    Row-major order: where the products of the last lengths agree, so do the elements before and behind them. Between
    two such borders the affine is written out and reshaped.
    """
    if affine.uniform:
        return affine
    first, last = affine.axes[0], affine.axes[-1]
    if last >= len(source):
        return None
    known = dict(zip(affine.axes, affine.scale.shape, strict=True))
    source = tuple(known.get(axis, size) for axis, size in enumerate(source))
    borders = [
        (i, j)
        for i in range(len(source) + 1)
        for j in range(len(target) + 1)
        if _equal(source[:i], target[:j]) or _equal(source[i:], target[j:])
    ]
    begin = max(border for border in borders if border[0] <= first)
    end = min(border for border in borders if border[0] > last and border[1] >= begin[1])
    inner = [size for size in source[begin[0] : end[0]] if isinstance(size, int)]
    outer = _completed(list(target[begin[1] : end[1]]), math.prod(inner))
    if len(inner) < end[0] - begin[0] or outer is None or not 0 < math.prod(inner) <= LARGEST_EXPANSION:
        return None
    lone = [known.get(axis, 1) for axis in range(begin[0], end[0])]
    full = [np.broadcast_to(array.reshape(lone), inner).reshape(outer) for array in (affine.scale, affine.shift)]
    return Affine.over(full[0], full[1], range(begin[1], end[1]))


def _completed(sizes: list[int | str | None], total: int) -> list[int] | None:
    """``sizes`` with the one that is not known filled in; None where they cannot make ``total`` elements."""
    unknown = [place for place, size in enumerate(sizes) if not isinstance(size, int)]
    if len(unknown) == 1:
        sizes[unknown[0]] = total // max(1, math.prod(size for size in sizes if isinstance(size, int)))
    known = [size for size in sizes if isinstance(size, int)]
    return known if len(known) == len(sizes) and math.prod(known) == total else None


def _equal(one: Shape, other: Shape) -> bool:
    """Whether the products of two lists of lengths are known to be the same, and not zero."""
    if None in one or None in other:
        return False
    names = [sorted(size for size in sizes if isinstance(size, str)) for sizes in (one, other)]
    lengths = [math.prod(size for size in sizes if isinstance(size, int)) for sizes in (one, other)]
    return names[0] == names[1] and lengths[0] == lengths[1] != 0
