"""The layer of FixUp's scalar multipliers and biases."""

from typing import Any

import numpy as np

from fastbn.functional.scalar_affine import scalar_affine, scalar_affine_backward, scalar_affine_forward
from fastbn.nn.module import Module
from fastbn.nn.parameter import Parameter


class ScalarAffine(Module):
    """``weight x + bias`` for x (N, C, *), 2 to 5 axes, with one number each for all channels.

    multiplier: with weight (1,), 1 at first. bias: with bias (1,), 0 at first.
    """

    def __init__(self, multiplier: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.register_parameter("weight", Parameter(np.ones(1, np.float32)) if multiplier else None)
        self.register_parameter("bias", Parameter(np.zeros(1, np.float32)) if bias else None)

    def config(self) -> dict[str, Any]:
        """Constructor options."""
        return {"multiplier": self.weight is not None, "bias": self.bias is not None}

    def reset_parameters(self) -> None:
        """Weight 1, bias 0."""
        for parameter, value in ((self.weight, 1.0), (self.bias, 0.0)):
            if parameter is not None:
                parameter.data[...] = value

    def forward(self, x: np.ndarray) -> np.ndarray:
        """An array like x."""
        weight, bias = (None if parameter is None else parameter.data for parameter in (self.weight, self.bias))
        if not self.training:
            return scalar_affine(x, weight, bias)
        y, saved = scalar_affine_forward(x, weight, bias)
        self._keep((saved,))
        return y

    def backward(self, dy: np.ndarray, *, need_dx: bool = True) -> np.ndarray:
        """dx like x."""
        dx, dweight, dbias = scalar_affine_backward(dy, *self._take())
        for parameter, gradient in ((self.weight, dweight), (self.bias, dbias)):
            if parameter is not None and gradient is not None:
                parameter.accumulate(gradient)
        return dx
