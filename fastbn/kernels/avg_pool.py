"""Average pooling; see ``pooling``. Sums are taken in float64, window by window, in row-major order.

A task is a plane, the image of one sample and channel. Where channels lie together, it is a row of the output, a
vector of channels at a time, and in the backward pass a group of an image's channels. Shares of a gradient are added
up in its own dtype, in the order of their windows.
"""

from numba import int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._vector import evens, lanes_of, narrow, odds, quotient, splat, widen, zipped_high, zipped_low
from fastbn.kernels._vector_memory import load_first, load_part, store_first, store_part
from fastbn.kernels.pooling import GROUP, are_pairs, channels_together, clear_pixels


@inlined
def _extent(o, stride, pad, kernel, size, count_include_pad):
    """First and last input of a window along one axis, and how many positions its divisor counts."""
    first = o * stride - pad
    last = min(first + kernel, size + pad)
    counted = last - first
    first, last = max(first, 0), min(last, size)
    return first, last, counted if count_include_pad else last - first


@body
def _plane(plane, x, x_shape, x_strides, y, y_shape, y_strides, window, count_include_pad):
    n, c = divmod(plane, x_shape[1])
    source, width = n * x_strides[0] + c * x_strides[1], x_shape[3]
    target = n * y_strides[0] + c * y_strides[1]
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, _, _ = window
    for oh in range(y_shape[2]):
        top, bottom, h_count = _extent(oh, stride_h, pad_h, kernel_h, x_shape[2], count_include_pad)
        for ow in range(y_shape[3]):
            left, right, w_count = _extent(ow, stride_w, pad_w, kernel_w, width, count_include_pad)
            total = 0.0
            for h in range(top, bottom):
                for i in range(source + h * width + left, source + h * width + right):
                    total += x[i]
            y[target + oh * y_shape[3] + ow] = total / (h_count * w_count)


@inlined
def _pairs(x, i, count, zero):
    """The first and the second of ``count`` pairs from i, in float64."""
    lanes = lanes_of(x)
    low = load_first(x, i, min(lanes, 2 * count), zero)
    high = load_first(x, i + lanes, max(0, 2 * count - lanes), zero)
    return widen(evens(low, high)), widen(odds(low, high))


@body
def _plane_of_pairs(plane, x, x_shape, x_strides, y, y_shape, y_strides):
    n, c = divmod(plane, x_shape[1])
    source, width = n * x_strides[0] + c * x_strides[1], x_shape[3]
    target = n * y_strides[0] + c * y_strides[1]
    lanes, zero = lanes_of(x), splat(x, 0.0)
    for oh in range(y_shape[2]):
        for ow in range(0, y_shape[3], lanes):
            i, count = source + 2 * oh * width + 2 * ow, min(lanes, y_shape[3] - ow)
            a, b = _pairs(x, i, count, zero)
            c, d = _pairs(x, i + width, count, zero)
            mean = narrow(x, quotient(a + b + c + d, 4))
            store_part(y, target + oh * y_shape[3] + ow, mean, count)


@body
def _row(task, x, x_shape, x_strides, y, y_shape, y_strides, window, count_include_pad):
    n, oh = divmod(task, y_shape[2])
    source, width, channels = n * x_strides[0], x_shape[3], x_shape[1]
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, _, _ = window
    lanes, zero = lanes_of(x), splat(x, 0.0)
    top, bottom, h_count = _extent(oh, stride_h, pad_h, kernel_h, x_shape[2], count_include_pad)
    for ow in range(y_shape[3]):
        left, right, w_count = _extent(ow, stride_w, pad_w, kernel_w, width, count_include_pad)
        at = n * y_strides[0] + oh * y_strides[2] + ow * y_strides[3]
        for c in range(0, channels, lanes):
            count = min(lanes, channels - c)
            total = widen(zero)
            for h in range(top, bottom):
                for w in range(left, right):
                    total = total + widen(load_part(x, source + (h * width + w) * channels + c, count, zero))
            store_part(y, at + c, narrow(x, quotient(total, h_count * w_count)), count)


@inlined
def _average_task(task, x, x_shape, x_strides, y, y_shape, y_strides, window, count_include_pad):
    if channels_together(x_strides, y_strides):
        _row(task, x, x_shape, x_strides, y, y_shape, y_strides, window, count_include_pad)
    elif are_pairs(window, x_shape, y_shape):
        _plane_of_pairs(task, x, x_shape, x_strides, y, y_shape, y_strides)
    else:
        _plane(task, x, x_shape, x_strides, y, y_shape, y_strides, window, count_include_pad)


@driver
def avg_pool(x, x_shape, x_strides, y, y_shape, y_strides, window, count_include_pad, parallel):
    """y = the mean of each window; padding counts as zeros if ``count_include_pad``, else not at all."""
    tasks = x_shape[0] * (y_shape[2] if channels_together(x_strides, y_strides) else x_shape[1])
    if parallel:
        for task in prange(tasks):
            _average_task(int64(task), x, x_shape, x_strides, y, y_shape, y_strides, window, count_include_pad)
    else:
        for task in range(tasks):
            _average_task(task, x, x_shape, x_strides, y, y_shape, y_strides, window, count_include_pad)


@body
def _plane_backward(plane, dy, y_shape, y_strides, dx, x_shape, x_strides, window, count_include_pad):
    n, c = divmod(plane, x_shape[1])
    source, width = n * y_strides[0] + c * y_strides[1], x_shape[3]
    target = n * x_strides[0] + c * x_strides[1]
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, _, _ = window
    dx[target : target + x_shape[2] * width] = 0
    for oh in range(y_shape[2]):
        top, bottom, h_count = _extent(oh, stride_h, pad_h, kernel_h, x_shape[2], count_include_pad)
        for ow in range(y_shape[3]):
            left, right, w_count = _extent(ow, stride_w, pad_w, kernel_w, width, count_include_pad)
            share = dy[source + oh * y_shape[3] + ow] / dy.dtype.type(h_count * w_count)
            for h in range(top, bottom):
                for i in range(target + h * width + left, target + h * width + right):
                    dx[i] += share


@body
def _plane_of_pairs_backward(plane, dy, y_shape, y_strides, dx, x_shape, x_strides):
    n, c = divmod(plane, x_shape[1])
    source, width = n * y_strides[0] + c * y_strides[1], x_shape[3]
    target = n * x_strides[0] + c * x_strides[1]
    if x_shape[2] % 2 or width % 2:
        dx[target : target + x_shape[2] * width] = 0
    lanes, zero = lanes_of(dx), splat(dx, 0.0)
    for oh in range(y_shape[2]):
        for ow in range(0, y_shape[3], lanes):
            count = min(lanes, y_shape[3] - ow)
            share = quotient(load_part(dy, source + oh * y_shape[3] + ow, count, zero), 4)
            low, high = zipped_low(share, share), zipped_high(share, share)
            for row in range(2):
                i = target + (2 * oh + row) * width + 2 * ow
                store_first(dx, i, low, min(lanes, 2 * count))
                store_first(dx, i + lanes, high, max(0, 2 * count - lanes))


@body
def _group_backward(task, dy, y_shape, y_strides, dx, x_shape, x_strides, window, count_include_pad):
    channels, width, lanes = x_shape[1], x_shape[3], lanes_of(dx)
    n, group = divmod(task, -(-channels // GROUP))
    first, last = group * GROUP, min(channels, (group + 1) * GROUP)
    source, target, zero = n * y_strides[0], n * x_strides[0], splat(dx, 0.0)
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, _, _ = window
    clear_pixels(dx, target + first, x_shape[2] * width, channels, last - first)
    for oh in range(y_shape[2]):
        top, bottom, h_count = _extent(oh, stride_h, pad_h, kernel_h, x_shape[2], count_include_pad)
        for ow in range(y_shape[3]):
            left, right, w_count = _extent(ow, stride_w, pad_w, kernel_w, width, count_include_pad)
            at = source + (oh * y_shape[3] + ow) * channels
            for c in range(first, last, lanes):
                count = min(lanes, last - c)
                share = quotient(load_part(dy, at + c, count, zero), h_count * w_count)
                for h in range(top, bottom):
                    for w in range(left, right):
                        i = target + (h * width + w) * channels + c
                        store_part(dx, i, load_part(dx, i, count, zero) + share, count)


@inlined
def _backward_task(task, dy, y_shape, y_strides, dx, x_shape, x_strides, window, count_include_pad):
    if channels_together(x_strides, y_strides):
        _group_backward(task, dy, y_shape, y_strides, dx, x_shape, x_strides, window, count_include_pad)
    elif are_pairs(window, x_shape, y_shape):
        _plane_of_pairs_backward(task, dy, y_shape, y_strides, dx, x_shape, x_strides)
    else:
        _plane_backward(task, dy, y_shape, y_strides, dx, x_shape, x_strides, window, count_include_pad)


@driver
def avg_pool_backward(dy, y_shape, y_strides, dx, x_shape, x_strides, window, count_include_pad, parallel):
    """dx = each dy shared out evenly over its window."""
    tasks = x_shape[0] * (-(-x_shape[1] // GROUP) if channels_together(x_strides, y_strides) else x_shape[1])
    if parallel:
        for task in prange(tasks):
            _backward_task(int64(task), dy, y_shape, y_strides, dx, x_shape, x_strides, window, count_include_pad)
    else:
        for task in range(tasks):
            _backward_task(task, dy, y_shape, y_strides, dx, x_shape, x_strides, window, count_include_pad)
