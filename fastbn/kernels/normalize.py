"""The elementwise halves of batch norm: one affine map per channel, forward and backward.

``(x - mean) * scale + shift`` and not ``x * scale + constant``: the latter cancels when |mean| is far above std.
An operand that does not apply is an array whose last axis is empty. ``v < 0`` decides a ReLU, so that a NaN passes.
"""

from numba import int64, prange

from fastbn.kernels._jit import body, driver

ROWS = 64  # rows of an (M, C) array in one task


@body
def _normalize_row(x, mean, scale, shift, residual, relu, out):
    if residual.size:
        for s in range(x.size):
            v = (x[s] - mean) * scale + shift + residual[s]
            out[s] = 0 if relu and v < 0 else v
    else:
        for s in range(x.size):
            v = (x[s] - mean) * scale + shift
            out[s] = 0 if relu and v < 0 else v


@body
def _row_ncs(array, n, c):
    return array[n, c] if array.size else array[0, 0]


@body
def _normalize_ncs_task(row, x, mean, scale, shift, residual, relu, out):
    n, c = divmod(row, x.shape[1])
    _normalize_row(x[n, c], mean[c], scale[c], shift[c], _row_ncs(residual, n, c), relu, out[n, c])


@driver
def normalize_ncs(x, mean, scale, shift, residual, relu, out, parallel):
    """out = relu((x - mean) * scale + shift + residual) for (N, C, S) arrays; out may be x or residual."""
    rows = x.shape[0] * x.shape[1]
    if parallel:
        for row in prange(rows):
            _normalize_ncs_task(int64(row), x, mean, scale, shift, residual, relu, out)
    else:
        for row in range(rows):
            _normalize_ncs_task(row, x, mean, scale, shift, residual, relu, out)


@body
def _normalize_mc_task(block, x, mean, scale, shift, residual, relu, out):
    for m in range(block * ROWS, min(x.shape[0], (block + 1) * ROWS)):
        if residual.size:
            for c in range(x.shape[1]):
                v = (x[m, c] - mean[c]) * scale[c] + shift[c] + residual[m, c]
                out[m, c] = 0 if relu and v < 0 else v
        else:
            for c in range(x.shape[1]):
                v = (x[m, c] - mean[c]) * scale[c] + shift[c]
                out[m, c] = 0 if relu and v < 0 else v


@driver
def normalize_mc(x, mean, scale, shift, residual, relu, out, parallel):
    """out = relu((x - mean) * scale + shift + residual) for (M, C) arrays; out may be x or residual."""
    blocks = -(-x.shape[0] // ROWS)
    if parallel:
        for block in prange(blocks):
            _normalize_mc_task(int64(block), x, mean, scale, shift, residual, relu, out)
    else:
        for block in range(blocks):
            _normalize_mc_task(block, x, mean, scale, shift, residual, relu, out)


@body
def _gradient_row(dy, x, y, mean, inv_std, a, b, k, dx, dresidual):
    masked = y.size > 0
    for s in range(x.size):
        g = dy[s]
        if masked and y[s] <= 0:
            g = 0
        dx[s] = a * g + b * ((x[s] - mean) * inv_std) + k
        if dresidual.size:
            dresidual[s] = g


@body
def _gradient_ncs_task(row, dy, x, y, mean, inv_std, a, b, k, dx, dresidual):
    n, c = divmod(row, x.shape[1])
    _gradient_row(
        dy[n, c],
        x[n, c],
        _row_ncs(y, n, c),
        mean[c],
        inv_std[c],
        a[c],
        b[c],
        k[c],
        dx[n, c],
        _row_ncs(dresidual, n, c),
    )


@driver
def gradient_ncs(dy, x, y, mean, inv_std, a, b, k, dx, dresidual, parallel):
    """dx = a g + b (x - mean) inv_std + k for (N, C, S) arrays, dresidual = g.

    g is dy, or dy where y > 0 if y is not empty.
    """
    rows = x.shape[0] * x.shape[1]
    if parallel:
        for row in prange(rows):
            _gradient_ncs_task(int64(row), dy, x, y, mean, inv_std, a, b, k, dx, dresidual)
    else:
        for row in range(rows):
            _gradient_ncs_task(row, dy, x, y, mean, inv_std, a, b, k, dx, dresidual)


@body
def _gradient_mc_task(block, dy, x, y, mean, inv_std, a, b, k, dx, dresidual):
    masked = y.size > 0
    for m in range(block * ROWS, min(x.shape[0], (block + 1) * ROWS)):
        for c in range(x.shape[1]):
            g = dy[m, c]
            if masked and y[m, c] <= 0:
                g = 0
            dx[m, c] = a[c] * g + b[c] * ((x[m, c] - mean[c]) * inv_std[c]) + k[c]
            if dresidual.size:
                dresidual[m, c] = g


@driver
def gradient_mc(dy, x, y, mean, inv_std, a, b, k, dx, dresidual, parallel):
    """dx = a g + b (x - mean) inv_std + k and dresidual = g, as in ``gradient_ncs``, for (M, C) arrays."""
    blocks = -(-x.shape[0] // ROWS)
    if parallel:
        for block in prange(blocks):
            _gradient_mc_task(int64(block), dy, x, y, mean, inv_std, a, b, k, dx, dresidual)
    else:
        for block in range(blocks):
            _gradient_mc_task(block, dy, x, y, mean, inv_std, a, b, k, dx, dresidual)
