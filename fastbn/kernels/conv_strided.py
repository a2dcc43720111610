"""The pixels of channels-last images that a convolution of single pixels with a stride visits: (N, H, W, C)."""

from numba import int64, prange

from fastbn.kernels._jit import body, driver


@body
def _visit_row(row, x, stride_h, stride_w, out):
    image, down = divmod(row, out.shape[1])
    for across in range(out.shape[2]):
        for c in range(out.shape[3]):
            out[image, down, across, c] = x[image, down * stride_h, across * stride_w, c]


@driver
def visit_pixels(x, stride_h, stride_w, out, parallel):
    """out = the pixels of x that are visited."""
    rows = out.shape[0] * out.shape[1]
    if parallel:
        for row in prange(rows):
            _visit_row(int64(row), x, stride_h, stride_w, out)
    else:
        for row in range(rows):
            _visit_row(row, x, stride_h, stride_w, out)


@body
def _spread_row(row, part, stride_h, stride_w, residual, dx):
    image, down = divmod(row, dx.shape[1])
    if residual is None:
        dx[image, down] = 0
    else:
        for across in range(dx.shape[2]):
            for c in range(dx.shape[3]):
                dx[image, down, across, c] = residual[image, down, across, c]
    if down % stride_h == 0:
        for across in range(part.shape[2]):
            for c in range(part.shape[3]):
                value = part[image, down // stride_h, across, c]
                if residual is None:
                    dx[image, down, across * stride_w, c] = value
                else:
                    dx[image, down, across * stride_w, c] += value


@driver
def spread_pixels(part, stride_h, stride_w, residual, dx, parallel):
    """dx = ``part`` where it was visited, 0 elsewhere; + residual, unless that is None."""
    rows = dx.shape[0] * dx.shape[1]
    if parallel:
        for row in prange(rows):
            _spread_row(int64(row), part, stride_h, stride_w, residual, dx)
    else:
        for row in range(rows):
            _spread_row(row, part, stride_h, stride_w, residual, dx)
