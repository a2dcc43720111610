"""What a batch norm benchmark computes, the bytes it must move, and the right answer."""

from dataclasses import dataclass

import numpy as np

from fastbn._memory import empty

# Bytes that must move, in units of the input's (read twice and written once, and so on), and the least reads of each.
TRAFFIC = {"training": 3, "training + residual + ReLU": 4, "backward": 5, "inference": 2}
# Arrays of the input's size that they lie in: how much of it a cache may serve.
ARRAYS = {"training": 2, "training + residual + ReLU": 3, "backward": 3, "inference": 2}
EPS = 1e-5


@dataclass
class Operands:
    """One batch norm in one memory order: arrays of shape (N, C, *spatial), vectors (C,)."""

    x: np.ndarray
    dy: np.ndarray
    residual: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    var: np.ndarray


def operands(shape: tuple[int, ...], channels_last: bool) -> Operands:
    rng = np.random.default_rng(0)
    memory = (shape[0], *shape[2:], shape[1]) if channels_last else shape

    def image() -> np.ndarray:
        array = empty(memory, np.dtype(np.float32))
        array[...] = rng.standard_normal(memory, np.float32)
        return np.moveaxis(array, -1, 1) if channels_last else array

    vectors = rng.uniform(0.5, 1.5, (4, shape[1])).astype(np.float32)
    return Operands(image(), image(), image(), *vectors)


def check(operation: str, o: Operands, answer: np.ndarray) -> None:
    """Compare a few channels with float64."""
    some = np.unique([0, o.x.shape[1] // 2, o.x.shape[1] - 1])
    x, dy, residual = (array[:, some].astype(np.float64) for array in (o.x, o.dy, o.residual))
    column = (1, -1, *(1,) * (x.ndim - 2))
    axes = (0, *range(2, x.ndim))
    weight, bias, mean, var = (vector[some].reshape(column) for vector in (o.weight, o.bias, o.mean, o.var))
    if operation != "inference":
        mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    scale = weight / np.sqrt(var + EPS)
    wanted = (x - mean) * scale + bias
    if operation.endswith("ReLU"):
        wanted = np.maximum(wanted + residual, 0)
    if operation == "backward":
        xhat = (x - mean) / np.sqrt(var + EPS)
        wanted = scale * (dy - dy.mean(axes, keepdims=True) - xhat * (dy * xhat).mean(axes, keepdims=True))
    np.testing.assert_allclose(answer[:, some], wanted, rtol=1e-3, atol=1e-4)
