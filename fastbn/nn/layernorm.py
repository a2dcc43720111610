"""Layer norm and RMS norm, with PyTorch's arguments and names."""

from typing import Any

import numpy as np

from fastbn._checks import check_float, check_number
from fastbn.functional.layer_norm import (
    Shape,
    as_shape,
    layer_norm_backward,
    layer_norm_forward,
    rms_norm_backward,
    rms_norm_forward,
)
from fastbn.nn.affine import AffineModule


class LayerNorm(AffineModule):
    """Layer norm over the last axes (Ba, Kiros and Hinton 2016, arXiv 1607.06450).

    normalized_shape: of those axes, or the length of one. eps: added to the variance. elementwise_affine: with weight
    and, if ``bias``, bias of that shape.
    """

    def __init__(
        self, normalized_shape: Shape, eps: float = 1e-5, elementwise_affine: bool = True, bias: bool = True
    ) -> None:
        super().__init__()
        self.normalized_shape = as_shape("LayerNorm", normalized_shape)
        check_number("LayerNorm", "eps", eps, 0.0)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self._register_affine(self.normalized_shape, elementwise_affine, elementwise_affine and bias)

    def config(self) -> dict[str, Any]:
        """Constructor options."""
        return {
            "normalized_shape": self.normalized_shape,
            "eps": self.eps,
            "elementwise_affine": self.elementwise_affine,
            "bias": self.bias is not None,
        }

    def forward(self, x: np.ndarray) -> np.ndarray:
        """(*, *normalized_shape), C-contiguous."""
        check_float("LayerNorm", "x", x)
        y, saved = layer_norm_forward(x, self.normalized_shape, *self.affine_arrays(), self.eps)
        self._keep(saved)
        return y

    def backward(self, dy: np.ndarray, *, need_dx: bool = True) -> np.ndarray:
        """dx like x."""
        dx, dweight, dbias = layer_norm_backward(dy, self._take())
        self._accumulate(dweight, dbias)
        return dx


class RMSNorm(AffineModule):
    """RMS norm over the last axes (Zhang and Sennrich 2019, arXiv 1910.07467).

    normalized_shape, elementwise_affine: as in ``LayerNorm``; there is no bias. eps: added to the mean square, None
    for the distance from 1 to the next number of x's dtype.
    """

    def __init__(self, normalized_shape: Shape, eps: float | None = None, elementwise_affine: bool = True) -> None:
        super().__init__()
        self.normalized_shape = as_shape("RMSNorm", normalized_shape)
        if eps is not None:
            check_number("RMSNorm", "eps", eps, 0.0)
        self.eps = eps
        self.elementwise_affine = elementwise_affine
        self._register_affine(self.normalized_shape, elementwise_affine, False)

    def config(self) -> dict[str, Any]:
        """Constructor options."""
        return {
            "normalized_shape": self.normalized_shape,
            "eps": self.eps,
            "elementwise_affine": self.elementwise_affine,
        }

    def forward(self, x: np.ndarray) -> np.ndarray:
        """(*, *normalized_shape), C-contiguous."""
        check_float("RMSNorm", "x", x)
        y, saved = rms_norm_forward(x, self.normalized_shape, self.affine_arrays()[0], self.eps)
        self._keep(saved)
        return y

    def backward(self, dy: np.ndarray, *, need_dx: bool = True) -> np.ndarray:
        """dx like x."""
        dx, dweight = rms_norm_backward(dy, self._take())
        self._accumulate(dweight, None)
        return dx
