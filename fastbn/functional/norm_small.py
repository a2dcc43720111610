"""Small arrays of the plainest kind: one short look at the arguments, one serial kernel.

Each function does the whole of its door, or returns None and has done nothing: what is large, lies otherwise, is of
another dtype or is wrong goes the long way, which says what it is.
"""

import math

import numpy as np

from fastbn._checks import FLOAT32
from fastbn._threads import MIN_PARALLEL_WORK
from fastbn.functional.norm_kernels import SHORT_ROW
from fastbn.kernels.batch_norm_small import backward_small, infer_small, train_small
from fastbn.kernels.sums import CHUNK


def _is_plain(x: object, *vectors: object) -> bool:
    if not (type(x) is np.ndarray and x.dtype is FLOAT32 and 0 < x.size < MIN_PARALLEL_WORK and x.flags.carray):
        return False
    if not 2 <= x.ndim <= 5:
        return False
    shape = x.shape[1:2]
    for vector in vectors:
        if type(vector) is not np.ndarray or vector.dtype is not FLOAT32 or vector.shape != shape:
            return False
        if not vector.flags.carray:
            return False
    return True


def _is_number(value: object, high: float = math.inf) -> bool:
    return type(value) is float and 0.0 <= value <= high


def infer(x: np.ndarray, vectors: tuple[np.ndarray | None, ...], eps: float) -> np.ndarray | None:
    """y of ``batch_norm`` by the running statistics. vectors: weight, bias, running mean and variance."""
    if not (_is_plain(x, *vectors) and _is_number(eps)):
        return None
    y = np.empty(x.shape, FLOAT32)
    rows = (*x.shape[:2], -1)
    return y if infer_small(x.reshape(rows), *vectors, eps, y.reshape(rows)) < 0 else None


def _has_rows(n: int, s: int) -> bool:
    """Whether ``norm_kernels`` would read (n, C, s) as rows."""
    return s > 1 and (s >= SHORT_ROW or n < 8)


def train(
    x: np.ndarray, vectors: tuple[np.ndarray | None, ...], momentum: float, eps: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """y of ``batch_norm`` by the batch's statistics, stats and affine; the running statistics are moved."""
    if not (_is_plain(x, *vectors) and _is_number(eps) and _is_number(momentum, 1.0)):
        return None
    n, c = x.shape[:2]
    s = x.size // (n * c)
    if not _has_rows(n, s):
        return None
    y, stats, affine = np.empty(x.shape, FLOAT32), np.empty((3, c)), np.empty((3, c), FLOAT32)
    grid = min(n, max(1, CHUNK // s)), min(s, CHUNK)
    found = stats, affine, y.reshape(n, c, s)
    negative = train_small(x.reshape(n, c, s), *vectors, momentum, eps, *grid, *found)
    return (y, stats, affine) if negative < 0 else None


def backward(
    dy: np.ndarray, x: np.ndarray, stats: np.ndarray, affine: np.ndarray, batch_stats: bool
) -> tuple[np.ndarray, np.ndarray] | None:
    """dx, and dweight and dbias (2, C), of a forward pass without residual and ReLU."""
    if not (_is_plain(dy) and _is_plain(x) and dy.shape == x.shape):
        return None
    n, c = x.shape[:2]
    s = x.size // (n * c)
    if not _has_rows(n, s):
        return None
    dx, gradients = np.empty(x.shape, FLOAT32), np.empty((2, c), FLOAT32)
    grid = min(n, max(1, CHUNK // s)), min(s, CHUNK)
    shape = n, c, s
    given = stats, affine, batch_stats, *grid
    backward_small(dy.reshape(shape), x.reshape(shape), *given, gradients, dx.reshape(shape))
    return dx, gradients
