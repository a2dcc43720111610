"""Max and average pooling. Images are flat arrays with element strides (n, c, h, w).

``window`` is (kernel h, kernel w, stride h, stride w, padding h, padding w, dilation h, dilation w). A task is one
plane: the (h, w) image of one sample and channel.
"""

import math

from numba import int64, prange

from fastbn.kernels._jit import body, driver


@body
def _max_plane(plane, x, x_shape, x_strides, y, indices, y_shape, y_strides, window):
    n, c = divmod(plane, x_shape[1])
    source = n * x_strides[0] + c * x_strides[1]
    target = n * y_strides[0] + c * y_strides[1]
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w = window
    for oh in range(y_shape[2]):
        for ow in range(y_shape[3]):
            best = x[source]
            index = -1
            for i in range(kernel_h):
                h = oh * stride_h - pad_h + i * dilation_h
                if h < 0 or h >= x_shape[2]:
                    continue
                for j in range(kernel_w):
                    w = ow * stride_w - pad_w + j * dilation_w
                    if w < 0 or w >= x_shape[3]:
                        continue
                    value = x[source + h * x_strides[2] + w * x_strides[3]]
                    # A NaN wins, and keeps its place.
                    if index < 0 or value > best or (value != value and best == best):
                        best = value
                        index = h * x_shape[3] + w
            at = target + oh * y_strides[2] + ow * y_strides[3]
            y[at] = best if index >= 0 else -math.inf
            indices[at] = index


@driver
def max_pool(x, x_shape, x_strides, y, indices, y_shape, y_strides, window, parallel):
    """y = the largest value of each window; indices (int32, as y): its place h * W + w in the plane, -1 for none."""
    planes = x_shape[0] * x_shape[1]
    if parallel:
        for plane in prange(planes):
            _max_plane(int64(plane), x, x_shape, x_strides, y, indices, y_shape, y_strides, window)
    else:
        for plane in range(planes):
            _max_plane(plane, x, x_shape, x_strides, y, indices, y_shape, y_strides, window)


@body
def _clear_plane(array, start, shape, strides):
    for h in range(shape[2]):
        for w in range(shape[3]):
            array[start + h * strides[2] + w * strides[3]] = 0


@body
def _max_plane_backward(plane, dy, indices, y_shape, y_strides, dx, x_shape, x_strides):
    n, c = divmod(plane, x_shape[1])
    target = n * x_strides[0] + c * x_strides[1]
    _clear_plane(dx, target, x_shape, x_strides)
    for oh in range(y_shape[2]):
        for ow in range(y_shape[3]):
            at = n * y_strides[0] + c * y_strides[1] + oh * y_strides[2] + ow * y_strides[3]
            index = indices[at]
            if index >= 0:
                h, w = divmod(index, x_shape[3])
                dx[target + h * x_strides[2] + w * x_strides[3]] += dy[at]


@driver
def max_pool_backward(dy, indices, y_shape, y_strides, dx, x_shape, x_strides, parallel):
    """dx = dy added up at the places that ``max_pool`` chose."""
    planes = x_shape[0] * x_shape[1]
    if parallel:
        for plane in prange(planes):
            _max_plane_backward(int64(plane), dy, indices, y_shape, y_strides, dx, x_shape, x_strides)
    else:
        for plane in range(planes):
            _max_plane_backward(plane, dy, indices, y_shape, y_strides, dx, x_shape, x_strides)


@body
def _extent(o, stride, pad, kernel, size, count_include_pad):
    """First and last input of a window along one axis, and how many positions its divisor counts."""
    first = o * stride - pad
    last = min(first + kernel, size + pad)
    counted = last - first
    first, last = max(first, 0), min(last, size)
    return first, last, counted if count_include_pad else last - first


@body
def _average_plane(plane, x, x_shape, x_strides, y, y_shape, y_strides, window, count_include_pad):
    n, c = divmod(plane, x_shape[1])
    source = n * x_strides[0] + c * x_strides[1]
    target = n * y_strides[0] + c * y_strides[1]
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, _, _ = window
    for oh in range(y_shape[2]):
        h_first, h_last, h_count = _extent(oh, stride_h, pad_h, kernel_h, x_shape[2], count_include_pad)
        for ow in range(y_shape[3]):
            w_first, w_last, w_count = _extent(ow, stride_w, pad_w, kernel_w, x_shape[3], count_include_pad)
            total = 0.0
            for h in range(h_first, h_last):
                for w in range(w_first, w_last):
                    total += x[source + h * x_strides[2] + w * x_strides[3]]
            y[target + oh * y_strides[2] + ow * y_strides[3]] = total / (h_count * w_count)


@driver
def avg_pool(x, x_shape, x_strides, y, y_shape, y_strides, window, count_include_pad, parallel):
    """y = the mean of each window; padding counts as zeros if ``count_include_pad``, else not at all."""
    planes = x_shape[0] * x_shape[1]
    if parallel:
        for plane in prange(planes):
            _average_plane(int64(plane), x, x_shape, x_strides, y, y_shape, y_strides, window, count_include_pad)
    else:
        for plane in range(planes):
            _average_plane(plane, x, x_shape, x_strides, y, y_shape, y_strides, window, count_include_pad)


@body
def _average_plane_backward(plane, dy, y_shape, y_strides, dx, x_shape, x_strides, window, count_include_pad):
    n, c = divmod(plane, x_shape[1])
    target = n * x_strides[0] + c * x_strides[1]
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, _, _ = window
    _clear_plane(dx, target, x_shape, x_strides)
    for oh in range(y_shape[2]):
        h_first, h_last, h_count = _extent(oh, stride_h, pad_h, kernel_h, x_shape[2], count_include_pad)
        for ow in range(y_shape[3]):
            w_first, w_last, w_count = _extent(ow, stride_w, pad_w, kernel_w, x_shape[3], count_include_pad)
            at = n * y_strides[0] + c * y_strides[1] + oh * y_strides[2] + ow * y_strides[3]
            share = dy[at] / (h_count * w_count)
            for h in range(h_first, h_last):
                for w in range(w_first, w_last):
                    dx[target + h * x_strides[2] + w * x_strides[3]] += share


@driver
def avg_pool_backward(dy, y_shape, y_strides, dx, x_shape, x_strides, window, count_include_pad, parallel):
    """dx = each dy shared out evenly over its window."""
    planes = x_shape[0] * x_shape[1]
    if parallel:
        for plane in prange(planes):
            _average_plane_backward(
                int64(plane), dy, y_shape, y_strides, dx, x_shape, x_strides, window, count_include_pad
            )
    else:
        for plane in range(planes):
            _average_plane_backward(plane, dy, y_shape, y_strides, dx, x_shape, x_strides, window, count_include_pad)
