"""Kernels touch what they are given and read nothing that nobody wrote.

Every operand, output and workspace here lies between NaNs, and new memory is full of them: a result that any of these
reached is not the result of a plain call, and a write beyond the ends is seen.
"""

import numpy as np
import pytest
from helpers import ORDERS

import fastbn.functional as F
from fastbn import _memory

GUARD = 4096
DTYPES = [np.float32, np.float64]


class Guarded:
    """Makes arrays with GUARD elements on both sides that nothing may read or write."""

    def __init__(self):
        self.memories = []

    def empty(self, shape, dtype=np.float64):
        poison = np.nan if np.dtype(dtype).kind == "f" else 77
        size = int(np.prod(shape))
        memory = np.full(size + 2 * GUARD, poison, dtype)
        self.memories.append((memory, memory.copy(), size))
        return memory[GUARD : GUARD + size].reshape(shape)

    def get(self, kind):
        """As the views of a scratch have it."""
        return self.empty(*kind)

    def copy(self, array):
        lying = np.argsort(array.strides, kind="stable")[::-1]
        copy = self.empty(tuple(array.shape[axis] for axis in lying), array.dtype).transpose(np.argsort(lying))
        copy[...] = array
        return copy

    def check(self):
        for memory, before, size in self.memories:
            for guard in np.s_[:GUARD], np.s_[GUARD + size :]:
                np.testing.assert_array_equal(memory[guard], before[guard])


def batch_norm(x):
    weight = np.arange(1, x.shape[1] + 1, dtype=x.dtype)
    y, saved = F.batch_norm_forward(x, weight, weight, residual=x, relu=True)
    frozen = F.batch_norm(x, weight, weight, residual=x)
    return [y, frozen, *F.batch_norm_backward(x, saved)]


def convolution(weight_shape, **options):
    def operation(x):
        weight = np.linspace(-1, 1, int(np.prod(weight_shape)), dtype=x.dtype).reshape(weight_shape)
        y = F.conv2d(x, weight, weight[:, 0, 0, 0].copy(), relu=True, **options)
        return [y, F.conv2d(x, weight, residual=y, **options), *F.conv2d_backward(y, x, weight, **options)]

    return operation


def linear(x):
    rows = x.reshape(-1, x.shape[-1])
    weight = np.linspace(-1, 1, 9 * rows.shape[1], dtype=x.dtype).reshape(9, -1)
    y = F.linear(rows, weight, weight[:, 0].copy(), relu=True)
    return [y, *F.linear_backward(y, rows, weight)]


def pooling(x):
    options = {"kernel_size": (1, 3), "stride": 2, "padding": (0, 1), "ceil_mode": True}
    y, indices = F.max_pool2d_forward(x, **options)
    average = F.avg_pool2d(x, **options)
    return [y, indices, F.max_pool2d_backward(y, indices, x.shape), average, F.avg_pool2d_backward(y, x, **options)]


def elementwise(x):
    doors = (F.relu, F.relu_backward), (F.relu6, F.relu6_backward), (F.sigmoid, F.sigmoid_backward)
    return [y for forward, backward in doors for y in (forward(x), backward(x, x))]


def cross_entropy(x):
    logits = x.reshape(-1, x.shape[-1])
    targets = np.arange(len(logits)) % logits.shape[1]
    loss, saved = F.cross_entropy_forward(logits, targets)
    return [np.array(loss), saved, F.cross_entropy_backward(logits, targets, saved)]


# Name: the shape of x, the operation
CASES = {
    "batch norm": ((3, 5, 7, 3), batch_norm),
    "batch norm, matrix": ((131, 3), batch_norm),
    "batch norm, two chunks": ((1, 2, 8200), batch_norm),
    "convolution": ((2, 4, 7, 6), convolution((16, 2, 3, 3), groups=2, padding=1)),
    "convolution, stride": ((2, 3, 9, 7), convolution((5, 3, 2, 3), stride=(2, 3), padding=1)),
    "convolution, dilation": ((1, 2, 13, 12), convolution((3, 2, 3, 3), dilation=(2, 5), padding=(0, 3))),
    "convolution, long row": ((1, 2, 3, 40), convolution((3, 2, 1, 30))),
    "convolution, long column": ((1, 2, 40, 3), convolution((3, 2, 30, 1))),
    "convolution, wide dilation": ((1, 1, 1, 90), convolution((1, 1, 1, 2), dilation=80)),
    "convolution, large stride": ((1, 3, 40, 41), convolution((2, 3, 1, 1), stride=13)),
    "linear": ((17, 300), linear),
    "pooling": ((2, 3, 5, 6), pooling),
    "elementwise": ((2, 3, 5, 7), elementwise),
    "cross entropy": ((70, 5), cross_entropy),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_beyond_the_ends_and_nothing_unwritten(rng, monkeypatch, dtype, order, case):
    shape, operation = CASES[case]
    x = ORDERS[order](rng.standard_normal(shape).astype(dtype))
    want = operation(x)
    guarded = Guarded()
    guarded_x = guarded.copy(x)
    assert guarded_x.strides == x.strides
    with monkeypatch.context() as patch:
        patch.setattr(np, "empty", guarded.empty)
        patch.setattr(_memory._scratch, "views", guarded)
        got = operation(guarded_x)
    assert len(guarded.memories) > 1
    for a, b in zip(got, want, strict=True):
        assert np.isfinite(b).all()
        np.testing.assert_array_equal(a, b)
    guarded.check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("elements", [1, 1000, 12345])
def test_workspaces_of_threads_lie_apart_and_on_lines(elements, dtype):
    rows = _memory.scratch((3, elements), np.dtype(dtype))
    assert rows.shape[0] == 3
    assert rows.strides[0] - elements * rows.itemsize >= _memory.APART
    assert {row.ctypes.data % _memory.ALIGNMENT for row in rows} == {0}
    assert _memory.scratch((3, elements), np.dtype(dtype)).ctypes.data == rows.ctypes.data
