"""Elementwise activations. Gradients are taken from the output, so only that need be kept."""

import numpy as np

from fastbn._checks import check_float, check_same_dtype, check_shape
from fastbn._threads import Kernel, launch
from fastbn._views import as_flat, dense, empty_like, in_order_of
from fastbn.kernels import activation as kernels


def relu(x: np.ndarray) -> np.ndarray:
    """max(x, 0), a NaN staying NaN; any shape, float32 or float64, x's memory order. Raises DtypeError."""
    return _forward("relu", kernels.relu, x)


def relu_backward(dy: np.ndarray, y: np.ndarray) -> np.ndarray:
    """dx = dy where y > 0 (or is NaN), else 0. Raises ShapeError, DtypeError."""
    return _backward("relu_backward", kernels.relu_backward, dy, y)


def relu6(x: np.ndarray) -> np.ndarray:
    """min(max(x, 0), 6), a NaN staying NaN; any shape, float32 or float64, x's memory order. Raises DtypeError."""
    return _forward("relu6", kernels.relu6, x)


def relu6_backward(dy: np.ndarray, y: np.ndarray) -> np.ndarray:
    """dx = dy where 0 < y < 6 (or y is NaN), else 0. Raises ShapeError, DtypeError."""
    return _backward("relu6_backward", kernels.relu6_backward, dy, y)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)); any shape, float32 or float64, x's memory order. Raises DtypeError."""
    return _forward("sigmoid", kernels.sigmoid, x)


def sigmoid_backward(dy: np.ndarray, y: np.ndarray) -> np.ndarray:
    """dx = dy y (1 - y). Raises ShapeError, DtypeError."""
    return _backward("sigmoid_backward", kernels.sigmoid_backward, dy, y)


def _forward(who: str, kernel: Kernel, x: np.ndarray) -> np.ndarray:
    check_float(who, "x", x)
    source = dense(x)
    out = empty_like(source)
    launch(kernel, as_flat(source), as_flat(out), work=x.size)
    return out


def _backward(who: str, kernel: Kernel, dy: np.ndarray, y: np.ndarray) -> np.ndarray:
    check_float(who, "y", y)
    check_same_dtype(who, "dy", dy, "y", y)
    check_shape(who, "dy", dy, y.shape, "as y")
    output = dense(y)
    dx = empty_like(output)
    launch(kernel, as_flat(in_order_of(dy, output)), as_flat(output), as_flat(dx), work=y.size)
    return dx
