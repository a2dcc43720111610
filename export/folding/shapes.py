"""Shapes of a graph's values, proved by ONNX's inference from the inputs' shapes and the constants alone."""

import math

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from export.folding.affine import Affine

Shape = tuple[int | str | None, ...]  # a length, a name for one, or nothing known

LARGEST_EXPANSION = 2**24  # elements of an affine written out over the axes that a Reshape joins


class Shapes:
    """Inferred once, when the first question comes; what the model claims of inner values is not believed."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._known: dict[ir.Value, tuple[ir.Shape | None, ir.DataType | None]] | None = None

    def of(self, value: ir.Value) -> Shape | None:
        """The shape of ``value``, None where not even its rank is known."""
        shape: ir.Shape | None
        if value.const_value is not None:
            shape = ir.Shape(value.const_value.shape.numpy())
        elif value.producer() is None:
            shape = value.shape
        else:
            shape = self._inferred(value)[0]
        if shape is None:
            return None
        return tuple(size if isinstance(size, int) else size.value for size in shape)

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """The type of the elements of ``value``, None where it is not known."""
        return value.dtype if value.producer() is None else self._inferred(value)[1]

    def _inferred(self, value: ir.Value) -> tuple[ir.Shape | None, ir.DataType | None]:
        if self._known is None:
            self._known = _infer(self._model)
        return self._known.get(value, (None, None))

    def same(self, old: ir.Value, new: ir.Value) -> None:
        """``new`` has the shape of ``old``."""
        if self._known is not None and old in self._known:
            self._known[new] = self._known[old]


def _infer(model: ir.Model) -> dict[ir.Value, tuple[ir.Shape | None, ir.DataType | None]]:
    values = [value for node in ir.traversal.RecursiveGraphIterator(model.graph) for value in node.outputs]
    claimed = [(value, value.shape, value.type) for value in values]
    initializers = list(model.graph.initializers.items())
    for value in values:
        value.shape = None
    try:
        ShapeInferencePass(check_type=False, strict_mode=False)(model)
        return {value: (value.shape, value.dtype) for value in values}
    finally:
        for value, shape, kind in claimed:
            value.shape, value.type = shape, kind
        for name, value in initializers:  # the pass takes the large ones out and puts them back at the end
            del model.graph.initializers[name]
            model.graph.initializers[name] = value


def carry(affine: Affine, source: Shape, target: Shape) -> Affine | None:
    """``affine`` on an array of shape ``source`` as one on its reshape to ``target``; None without proof.

    Row-major order: where the products of the last lengths agree, so do the elements before and behind them. Between
    two such borders the affine is written out, reshaped and must vary along one axis only.
    """
    if affine.axis is None:
        return affine
    if affine.axis >= len(source):
        return None
    source = tuple(affine.scale.size if axis == affine.axis else size for axis, size in enumerate(source))
    borders = [
        (i, j)
        for i in range(len(source) + 1)
        for j in range(len(target) + 1)
        if _equal(source[:i], target[:j]) or _equal(source[i:], target[j:])
    ]
    begin = max(border for border in borders if border[0] <= affine.axis)
    end = min(border for border in borders if border[0] > affine.axis and border[1] >= begin[1])
    inner, outer = source[begin[0] : end[0]], list(target[begin[1] : end[1]])
    if not all(isinstance(size, int) for size in inner):
        return None
    lengths = [size for size in inner if isinstance(size, int)]
    unknown = [axis for axis, size in enumerate(outer) if not isinstance(size, int)]
    total = math.prod(lengths)
    if len(unknown) == 1:
        outer[unknown[0]] = total // max(1, math.prod(size for size in outer if isinstance(size, int)))
    sizes = [size for size in outer if isinstance(size, int)]
    if len(unknown) > 1 or math.prod(sizes) != total or not 0 < total <= LARGEST_EXPANSION:
        return None
    position = affine.axis - begin[0]
    return _along_one_axis(affine, lengths, position, sizes, begin[1])


def _along_one_axis(affine: Affine, inner: list[int], position: int, outer: list[int], offset: int) -> Affine | None:
    vectors = np.stack([affine.scale, affine.shift])
    lone = [2] + [size if axis == position else 1 for axis, size in enumerate(inner)]
    full = np.broadcast_to(vectors.reshape(lone), (2, *inner)).reshape(2, *outer)
    for axis, size in enumerate(outer):
        along = np.moveaxis(full, axis + 1, 1).reshape(2, size, -1)
        if (along == along[..., :1]).all():
            return Affine.of(along[0, :, 0], along[1, :, 0], offset + axis)
    return None


def _equal(one: Shape, other: Shape) -> bool:
    """Whether the products of two lists of lengths are known to be the same, and not zero."""
    if None in one or None in other:
        return False
    names = [sorted(size for size in sizes if isinstance(size, str)) for sizes in (one, other)]
    lengths = [math.prod(size for size in sizes if isinstance(size, int)) for sizes in (one, other)]
    return names[0] == names[1] and lengths[0] == lengths[1] != 0
