"""Elementwise activations over flat arrays."""

from numba import int64, prange

from fastbn.kernels._exp import exp_nonpositive
from fastbn.kernels._jit import body, driver

BLOCK = 16384


@body
def _relu_task(block, x, out):
    for i in range(block * BLOCK, min(x.size, (block + 1) * BLOCK)):
        out[i] = 0 if x[i] < 0 else x[i]


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
    for i in range(block * BLOCK, min(y.size, (block + 1) * BLOCK)):
        g = dy[i]  # read in any case, or the loop does not vectorise
        dx[i] = 0 if y[i] <= 0 else g


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
    for i in range(block * BLOCK, min(x.size, (block + 1) * BLOCK)):
        out[i] = 0 if x[i] < 0 else (6 if x[i] > 6 else x[i])


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
    for i in range(block * BLOCK, min(y.size, (block + 1) * BLOCK)):
        g = dy[i]
        dx[i] = 0 if (y[i] <= 0) | (y[i] >= 6) else g


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
    for i in range(block * BLOCK, min(x.size, (block + 1) * BLOCK)):
        e = exp_nonpositive(-abs(x[i]))
        out[i] = (1 if x[i] >= 0 else e) / (1 + e)


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
    for i in range(block * BLOCK, min(y.size, (block + 1) * BLOCK)):
        dx[i] = dy[i] * y[i] * (1 - y[i])


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
