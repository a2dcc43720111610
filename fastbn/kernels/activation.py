"""Elementwise activations over flat arrays.

Vectors are explicit where one line can say them: LLVM makes them only where it sees that ``out`` is apart from ``x``,
and falls back to branches, taken at random, where they are one array or neighbours in memory.
"""

from numba import int64, prange

from fastbn.kernels._exp import logistic
from fastbn.kernels._jit import body, driver
from fastbn.kernels._vector import at_least, at_most, lanes_of, splat
from fastbn.kernels._vector_choice import where_passed, where_positive
from fastbn.kernels._vector_memory import load_part, store_part

BLOCK = 16384


@body
def _relu_task(block, x, out):
    lanes, zero, last = lanes_of(x), splat(x, 0.0), min(x.size, (block + 1) * BLOCK)
    for i in range(block * BLOCK, last, lanes):
        count = min(lanes, last - i)
        store_part(out, i, at_least(load_part(x, i, count, zero), zero), count)


@driver
def relu(x, out, parallel):
    """out = max(x, 0), a NaN staying NaN; out may be x."""
    blocks = -(-x.size // BLOCK)
    if parallel:
        for block in prange(blocks):
            _relu_task(int64(block), x, out)
    else:
        for block in range(blocks):
            _relu_task(block, x, out)


@body
def _relu_backward_task(block, dy, y, dx):
    lanes, zero, last = lanes_of(y), splat(y, 0.0), min(y.size, (block + 1) * BLOCK)
    for i in range(block * BLOCK, last, lanes):
        count = min(lanes, last - i)
        g, value = load_part(dy, i, count, zero), load_part(y, i, count, zero)
        store_part(dx, i, where_positive(value, g), count)


@driver
def relu_backward(dy, y, dx, parallel):
    """dx = dy where y > 0, else 0; dx may be dy."""
    blocks = -(-y.size // BLOCK)
    if parallel:
        for block in prange(blocks):
            _relu_backward_task(int64(block), dy, y, dx)
    else:
        for block in range(blocks):
            _relu_backward_task(block, dy, y, dx)


@body
def _relu6_task(block, x, out):
    lanes, zero, last = lanes_of(x), splat(x, 0.0), min(x.size, (block + 1) * BLOCK)
    for i in range(block * BLOCK, last, lanes):
        count = min(lanes, last - i)
        store_part(out, i, at_most(at_least(load_part(x, i, count, zero), zero), 6.0), count)


@driver
def relu6(x, out, parallel):
    """out = min(max(x, 0), 6), a NaN staying NaN; out may be x."""
    blocks = -(-x.size // BLOCK)
    if parallel:
        for block in prange(blocks):
            _relu6_task(int64(block), x, out)
    else:
        for block in range(blocks):
            _relu6_task(block, x, out)


@body
def _relu6_backward_task(block, dy, y, dx):
    lanes, zero, last = lanes_of(y), splat(y, 0.0), min(y.size, (block + 1) * BLOCK)
    for i in range(block * BLOCK, last, lanes):
        count = min(lanes, last - i)
        g, value = load_part(dy, i, count, zero), load_part(y, i, count, zero)
        store_part(dx, i, where_passed(value, g, 6.0), count)


@driver
def relu6_backward(dy, y, dx, parallel):
    """dx = dy where 0 < y < 6, else 0; dx may be dy."""
    blocks = -(-y.size // BLOCK)
    if parallel:
        for block in prange(blocks):
            _relu6_backward_task(int64(block), dy, y, dx)
    else:
        for block in range(blocks):
            _relu6_backward_task(block, dy, y, dx)


@body
def _sigmoid_task(block, x, out):
    lanes, zero, last = lanes_of(x), splat(x, 0.0), min(x.size, (block + 1) * BLOCK)
    for i in range(block * BLOCK, last, lanes):
        count = min(lanes, last - i)
        store_part(out, i, logistic(load_part(x, i, count, zero)), count)


@driver
def sigmoid(x, out, parallel):
    """out = 1 / (1 + exp(-x)); out may be x."""
    blocks = -(-x.size // BLOCK)
    if parallel:
        for block in prange(blocks):
            _sigmoid_task(int64(block), x, out)
    else:
        for block in range(blocks):
            _sigmoid_task(block, x, out)


@body
def _sigmoid_backward_task(block, dy, y, dx):
    lanes, zero, one, last = lanes_of(y), splat(y, 0.0), splat(y, 1.0), min(y.size, (block + 1) * BLOCK)
    for i in range(block * BLOCK, last, lanes):
        count = min(lanes, last - i)
        g, value = load_part(dy, i, count, zero), load_part(y, i, count, zero)
        store_part(dx, i, g * value * (one - value), count)


@driver
def sigmoid_backward(dy, y, dx, parallel):
    """dx = dy y (1 - y); dx may be dy."""
    blocks = -(-y.size // BLOCK)
    if parallel:
        for block in prange(blocks):
            _sigmoid_backward_task(int64(block), dy, y, dx)
    else:
        for block in range(blocks):
            _sigmoid_backward_task(block, dy, y, dx)
