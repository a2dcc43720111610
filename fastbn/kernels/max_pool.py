"""Max pooling; see ``pooling``. The place of a pixel is h * W + w; of equals the first wins, and a NaN over all.

A task is a plane, the image of one sample and channel. Where channels lie together, it is a row of the output, a
vector of channels at a time, and in the backward pass a group of an image's channels.
"""

import math

from numba import int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._vector import lanes_of, splat
from fastbn.kernels._vector_choice import larger, place_of_larger, places, store_places
from fastbn.kernels._vector_memory import load_part, store_part
from fastbn.kernels.pooling import GROUP, are_pairs, channels_together, clear_pixels


@inlined
def _extent(o, stride, pad, kernel, dilation, size):
    """The first input of a window along one axis, and the end of its inputs."""
    start = o * stride - pad
    end = min(start + kernel * dilation, size)
    while start < 0:
        start += dilation
    return start, end


@inlined
def _larger(best, index, value, place):
    """As selects: a branch here is taken at random."""
    takes = (value > best) | ((value != value) & (best == best))
    return value if takes else best, place if takes else index


@body
def _plane(plane, x, x_shape, x_strides, y, indices, y_shape, y_strides, window):
    n, c = divmod(plane, x_shape[1])
    source, width = n * x_strides[0] + c * x_strides[1], x_shape[3]
    target = n * y_strides[0] + c * y_strides[1]
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w = window
    for oh in range(y_shape[2]):
        top, bottom = _extent(oh, stride_h, pad_h, kernel_h, dilation_h, x_shape[2])
        for ow in range(y_shape[3]):
            left, right = _extent(ow, stride_w, pad_w, kernel_w, dilation_w, width)
            index = top * width + left
            best = x[source + index]
            h = top
            while h < bottom:
                w = left
                while w < right:
                    place = h * width + w
                    best, index = _larger(best, index, x[source + place], place)
                    w += dilation_w
                h += dilation_h
            at = target + oh * y_shape[3] + ow
            y[at] = best
            indices[at] = index
            if top >= bottom or left >= right:
                y[at] = -math.inf
                indices[at] = -1


@body
def _plane_of_pairs(plane, x, x_shape, x_strides, y, indices, y_shape, y_strides):
    n, c = divmod(plane, x_shape[1])
    source, width = n * x_strides[0] + c * x_strides[1], x_shape[3]
    target = n * y_strides[0] + c * y_strides[1]
    for oh in range(y_shape[2]):
        for ow in range(y_shape[3]):
            index = 2 * oh * width + 2 * ow
            upper = source + index
            best, place = _larger(x[upper], index, x[upper + 1], index + 1)
            best, place = _larger(best, place, x[upper + width], index + width)
            best, place = _larger(best, place, x[upper + width + 1], index + width + 1)
            y[target + oh * y_shape[3] + ow] = best
            indices[target + oh * y_shape[3] + ow] = place


@body
def _row(task, x, x_shape, x_strides, y, indices, y_shape, y_strides, window):
    n, oh = divmod(task, y_shape[2])
    source, width, channels = n * x_strides[0], x_shape[3], x_shape[1]
    kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w = window
    lanes, lowest = lanes_of(x), splat(x, -math.inf)
    top, bottom = _extent(oh, stride_h, pad_h, kernel_h, dilation_h, x_shape[2])
    for ow in range(y_shape[3]):
        left, right = _extent(ow, stride_w, pad_w, kernel_w, dilation_w, width)
        at = n * y_strides[0] + oh * y_strides[2] + ow * y_strides[3]
        for c in range(0, channels, lanes):
            count = min(lanes, channels - c)
            best, index = lowest, places(x, -1)
            if top < bottom and left < right:
                first = top * width + left
                best, index = load_part(x, source + first * channels + c, count, lowest), places(x, first)
            h = top
            while h < bottom:
                w = left
                while w < right:
                    place = h * width + w
                    value = load_part(x, source + place * channels + c, count, lowest)
                    index = place_of_larger(best, index, value, place)
                    best = larger(best, value)
                    w += dilation_w
                h += dilation_h
            store_part(y, at + c, best, count)
            store_places(indices, at + c, index, count)


@inlined
def _max_task(task, x, x_shape, x_strides, y, indices, y_shape, y_strides, window):
    if channels_together(x_strides, y_strides):
        _row(task, x, x_shape, x_strides, y, indices, y_shape, y_strides, window)
    elif are_pairs(window, x_shape, y_shape):
        _plane_of_pairs(task, x, x_shape, x_strides, y, indices, y_shape, y_strides)
    else:
        _plane(task, x, x_shape, x_strides, y, indices, y_shape, y_strides, window)


@driver
def max_pool(x, x_shape, x_strides, y, indices, y_shape, y_strides, window, parallel):
    """y = the largest value of each window; indices (int32, as y): its place in the plane, -1 for none."""
    tasks = x_shape[0] * (y_shape[2] if channels_together(x_strides, y_strides) else x_shape[1])
    if parallel:
        for task in prange(tasks):
            _max_task(int64(task), x, x_shape, x_strides, y, indices, y_shape, y_strides, window)
    else:
        for task in range(tasks):
            _max_task(task, x, x_shape, x_strides, y, indices, y_shape, y_strides, window)


@body
def _plane_backward(plane, dy, indices, y_shape, y_strides, dx, x_shape, x_strides):
    n, c = divmod(plane, x_shape[1])
    source, target = n * y_strides[0] + c * y_strides[1], n * x_strides[0] + c * x_strides[1]
    dx[target : target + x_shape[2] * x_shape[3]] = 0
    for i in range(source, source + y_shape[2] * y_shape[3]):
        if indices[i] >= 0:
            dx[target + indices[i]] += dy[i]


@body
def _group_backward(task, dy, indices, y_shape, y_strides, dx, x_shape, x_strides):
    channels = x_shape[1]
    n, group = divmod(task, -(-channels // GROUP))
    first, last = group * GROUP, min(channels, (group + 1) * GROUP)
    source, target = n * y_strides[0], n * x_strides[0]
    clear_pixels(dx, target + first, x_shape[2] * x_shape[3], channels, last - first)
    for pixel in range(source, source + y_shape[2] * y_shape[3] * channels, channels):
        for c in range(first, last):
            place = indices[pixel + c]
            if place >= 0:
                dx[target + place * channels + c] += dy[pixel + c]


@inlined
def _backward_task(task, dy, indices, y_shape, y_strides, dx, x_shape, x_strides):
    if channels_together(x_strides, y_strides):
        _group_backward(task, dy, indices, y_shape, y_strides, dx, x_shape, x_strides)
    else:
        _plane_backward(task, dy, indices, y_shape, y_strides, dx, x_shape, x_strides)


@driver
def max_pool_backward(dy, indices, y_shape, y_strides, dx, x_shape, x_strides, parallel):
    """dx = dy added up at the places that ``max_pool`` chose."""
    tasks = x_shape[0] * (-(-x_shape[1] // GROUP) if channels_together(x_strides, y_strides) else x_shape[1])
    if parallel:
        for task in prange(tasks):
            _backward_task(int64(task), dy, indices, y_shape, y_strides, dx, x_shape, x_strides)
    else:
        for task in range(tasks):
            _backward_task(task, dy, indices, y_shape, y_strides, dx, x_shape, x_strides)
