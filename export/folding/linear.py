"""A layer y = W x + b with constant weights, and the affine maps that it takes in.

Weights are changed once, at the end, whatever was absorbed: W' = diag(s_out) W diag(s_in) in float64, rounded once
to the dtype in which they are stored, and computed when they are written, so that one weight at a time is in memory.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from export.folding.affine import Affine
from export.folding.refused import Refused
from fastbn.errors import FastbnError
from fastbn.functional.fold import round_to

BLOCK = 2**18  # elements that are scaled and rounded at once: 2 MB in float64


@dataclass(frozen=True)
class Linear:
    """One layer.

    stored: gives the weight as the file holds it. shape, dtype: of ``stored``. view: W as an array in which inputs and
    outputs have axes of their own; out_shape, in_shape: how vectors over the output and input channels lie in ``view``.
    out_axis: the axis of ``stored`` along the output channels, None where groups divide them. weight_index: which input
    of the node the weight is. factor: what the layer multiplies its products with (Gemm's alpha).
    bias: float64, its last axis along the output channels; None for none. out_scale, in_scale: what was absorbed.
    """

    stored: Callable[[], np.ndarray]
    shape: tuple[int, ...]
    dtype: np.dtype
    view: tuple[int, ...]
    out_shape: tuple[int, ...]
    in_shape: tuple[int, ...]
    out_axis: int | None
    weight_index: int = 1
    factor: float = 1.0
    bias: np.ndarray | None = None
    out_scale: np.ndarray | None = None
    in_scale: np.ndarray | None = None

    @property
    def outputs(self) -> int:
        """Number of output channels."""
        return math.prod(self.out_shape)

    @property
    def inputs(self) -> int:
        """Number of input channels."""
        return math.prod(self.in_shape)

    def after(self, affine: Affine) -> "Linear":
        """The layer with ``affine`` on its outputs: W' = s W, b' = s b + t."""
        scale, shift = affine.wide(self.outputs)
        bias = shift if self.bias is None else self.bias * scale + shift
        if self.bias is None and affine.linear:
            bias = None
        return replace(self, bias=bias, out_scale=_times(self.out_scale, scale))

    def before(self, affine: Affine) -> "Linear":
        """The layer with ``affine`` on its inputs, none of which is padded: W' = W s, b' = b + W t."""
        scale, shift = affine.wide(self.inputs)
        bias = self.bias
        if not affine.linear:
            constant = self.factor * self.response(shift)
            bias = constant if bias is None else bias + constant
        return replace(self, bias=bias, in_scale=_times(self.in_scale, scale))

    def response(self, inputs: np.ndarray) -> np.ndarray:
        """W applied to one value per input channel, everywhere the same."""
        axes = tuple(axis for axis, size in enumerate(self.out_shape) if size == 1)
        total = np.zeros(self.out_shape)
        for block, scaled in self._blocks():
            products = scaled * inputs.reshape(self.in_shape)[_within(self.in_shape, block)]
            total[_within(self.out_shape, block)] += products.sum(axis=axes, keepdims=True)
        return total.reshape(-1)

    def weights(self) -> np.ndarray:
        """The weight to store, rounded once. Raises ArgumentError where it overflows."""
        rounded = np.empty(self.view, self.dtype)
        for block, scaled in self._blocks():
            rounded[block] = round_to("fold", scaled, self.dtype)
        return rounded.reshape(self.shape)

    def rounded_bias(self) -> np.ndarray | None:
        """The bias to store. Raises ArgumentError where it overflows."""
        return None if self.bias is None else round_to("fold", self.bias, self.dtype)

    def full_weight(self) -> np.ndarray:
        """The weight in float64, in the shape of ``stored``."""
        whole = np.empty(self.view)
        for block, scaled in self._blocks():
            whole[block] = scaled
        return whole.reshape(self.shape)

    def tensor(self) -> ir.TensorProtocol:
        """The weight as a tensor that is computed when it is asked for."""
        dtype = ir.DataType.from_numpy(self.dtype)
        return ir.LazyTensor(lambda: ir.Tensor(self.weights()), dtype=dtype, shape=ir.Shape(self.shape))

    def overflows(self) -> Refused | None:
        """Why the new constants cannot be stored, if they cannot."""
        try:
            for _, scaled in self._blocks():
                round_to("fold", scaled, self.dtype)
            self.rounded_bias()
        except FastbnError as error:
            return Refused(str(error))
        return None

    def _blocks(self) -> Iterator[tuple[tuple[slice, ...], np.ndarray]]:
        """The scaled weight in float64 piece by piece: places in ``view`` and what is there."""
        weight = self.stored().reshape(self.view)
        scales = [(self.out_scale, self.out_shape), (self.in_scale, self.in_shape)]
        row = max(1, math.prod(self.view[2:]))
        for first in _steps(self.view[0], BLOCK // max(1, self.view[1] * row)):
            for second in _steps(self.view[1], BLOCK // row):
                block = (first, second)
                scaled = weight[block].astype(np.float64)
                with np.errstate(all="ignore"):  # what overflows is refused in round_to
                    for scale, shape in scales:
                        if scale is not None:
                            scaled *= scale.reshape(shape)[_within(shape, block)]
                yield block, scaled


def _steps(length: int, step: int) -> Iterator[slice]:
    step = max(1, step)
    return (slice(begin, begin + step) for begin in range(0, length, step))


def _within(shape: tuple[int, ...], block: tuple[slice, ...]) -> tuple[slice, ...]:
    """Where an array of ``shape`` that broadcasts over the weight meets ``block``."""
    return tuple(slice(None) if size == 1 else part for size, part in zip(shape, block, strict=False))


def _times(scale: np.ndarray | None, more: np.ndarray) -> np.ndarray | None:
    if (more == 1).all():
        return scale
    return more.copy() if scale is None else scale * more
