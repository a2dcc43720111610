"""A layer y = W x + b with constant weights, and the affine maps that it takes in.

Weights are changed once, at the end, whatever was absorbed: W' = diag(s_out) W diag(s_in) in float64, rounded once
to the dtype in which they are stored, and computed when they are written, so that one weight at a time is in memory.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from export.folding.affine import Affine
from export.folding.refused import Refused
from fastbn.errors import FastbnError
from fastbn.functional.fold import round_to


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
        return int(np.prod(self.out_shape))

    @property
    def inputs(self) -> int:
        """Number of input channels."""
        return int(np.prod(self.in_shape))

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
        products = self._scaled() * inputs.reshape(self.in_shape)
        axes = tuple(axis for axis, size in enumerate(self.out_shape) if size == 1)
        return products.sum(axis=axes).reshape(-1)

    def weights(self) -> np.ndarray:
        """The weight to store, rounded once. Raises ArgumentError where it overflows."""
        return round_to("fold", self.full_weight(), self.dtype)

    def rounded_bias(self) -> np.ndarray | None:
        """The bias to store. Raises ArgumentError where it overflows."""
        return None if self.bias is None else round_to("fold", self.bias, self.dtype)

    def full_weight(self) -> np.ndarray:
        """The weight in float64, in the shape of ``stored``."""
        return self._scaled().reshape(self.shape)

    def tensor(self) -> ir.TensorProtocol:
        """The weight as a tensor that is computed when it is asked for."""
        dtype = ir.DataType.from_numpy(self.dtype)
        return ir.LazyTensor(lambda: ir.Tensor(self.weights()), dtype=dtype, shape=ir.Shape(self.shape))

    def overflows(self) -> Refused | None:
        """Why the new constants cannot be stored, if they cannot."""
        try:
            self.weights()
            self.rounded_bias()
        except FastbnError as error:
            return Refused(str(error))
        return None

    def _scaled(self) -> np.ndarray:
        weight = self.stored().astype(np.float64).reshape(self.view)
        with np.errstate(all="ignore"):
            if self.out_scale is not None:
                weight = weight * self.out_scale.reshape(self.out_shape)
            if self.in_scale is not None:
                weight = weight * self.in_scale.reshape(self.in_shape)
        return weight


def _times(scale: np.ndarray | None, more: np.ndarray) -> np.ndarray | None:
    if (more == 1).all():
        return scale
    return more.copy() if scale is None else scale * more
