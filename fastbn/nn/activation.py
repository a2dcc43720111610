"""Activation layers. All keep their output only."""

import numpy as np

from fastbn.functional.activation import relu, relu6, relu6_backward, relu_backward, sigmoid, sigmoid_backward
from fastbn.nn.module import Module


class ReLU(Module):
    """max(x, 0)."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        """An array like x."""
        y = relu(x)
        self._keep(y)
        return y

    def backward(self, dy: np.ndarray, *, need_dx: bool = True) -> np.ndarray:
        """dy where y > 0."""
        return relu_backward(dy, self._take())


class ReLU6(Module):
    """min(max(x, 0), 6)."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        """An array like x."""
        y = relu6(x)
        self._keep(y)
        return y

    def backward(self, dy: np.ndarray, *, need_dx: bool = True) -> np.ndarray:
        """dy where 0 < y < 6."""
        return relu6_backward(dy, self._take())


class Sigmoid(Module):
    """1 / (1 + exp(-x))."""

    def forward(self, x: np.ndarray) -> np.ndarray:
        """An array like x."""
        y = sigmoid(x)
        self._keep(y)
        return y

    def backward(self, dy: np.ndarray, *, need_dx: bool = True) -> np.ndarray:
        """Dy y (1 - y)."""
        return sigmoid_backward(dy, self._take())
