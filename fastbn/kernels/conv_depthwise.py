"""Depthwise convolution: every channel by itself, a vector of them at a time, down the rows of ``conv_rows``.

weights (taps, C to a whole vector); y[q, c] = sum over taps t of rows[offsets[t] + q, c] * weights[t, c].
"""

import numpy as np
from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._simd_depthwise import PIXELS, row_products
from fastbn.kernels._vector import (
    add_to,
    at_least,
    finite_or_zero,
    fma,
    lanes_of,
    load,
    load_first,
    load_part,
    splat,
    store,
    store_part,
    widen,
)
from fastbn.kernels.batch_norm_tiles import whole_vectors
from fastbn.kernels.conv_rows import fill_row

RUN = 64  # values summed in the dtype of the output, before they are added to sums in float64


@inlined
def _finished(line, i, start, residual, low, at, count):
    value = load(line, i) + start
    if residual is not None:
        value = value + load_part(residual, at, count, value)
    return at_least(value, low)


@inlined
def _store_row(line, length, count, start, residual, low, out, at, step, near, sums, place, squares):
    """A row of pixels whose channels lie together, and its sums about ``near``."""
    lanes = lanes_of(line)
    zero = near - near
    for first in range(0, length, RUN):
        d_sum = q_sum = zero
        for i in range(first, min(length, first + RUN)):
            pixel = at + i * step
            value = _finished(line, i * lanes, start, residual, low, pixel, count)
            store_part(out, pixel, value, count)
            if sums is not None:
                d = value - near
                d_sum, q_sum = d_sum + d, fma(d, d, q_sum)
        if sums is not None:
            add_to(sums, place, widen(d_sum))
            add_to(sums, place + squares, widen(q_sum))


@inlined
def _scatter_row(line, length, count, start, residual, low, out, at, stride, step):
    """A row of pixels whose channels lie ``stride`` apart."""
    lanes = lanes_of(line)
    for i in range(length):
        first, pixel = i * lanes, at + i * step
        store(line, first, load(line, first) + start)
        if residual is not None:
            for lane in range(count):
                line[first + lane] += residual[pixel + lane * stride]
        store(line, first, at_least(load(line, first), low))
        for lane in range(count):
            out[pixel + lane * stride] = line[first + lane]


@body
def _correlate_task(
    task, x, affine, relu, x_floor, x_shape, x_strides, starts_w, stride_h, stride_w, top, columns, offsets, weights,
    bias, residual, floor, out, out_shape, out_strides, rows, at_once, group, shifts, partials, work,
):  # fmt: skip
    lanes = lanes_of(x)
    zero, low = splat(x, 0.0), splat(x, floor)
    channels, height, width = x_shape[1], x_shape[2], x_shape[3]
    window, taps = offsets.shape
    row_size = starts_w.size * columns * lanes
    length = out_shape[3]
    room = (length + PIXELS) * lanes
    line, ring = work[:room], work[room:]
    piece, part = divmod(task, -(-channels // group))
    image, block = divmod(piece, -(-out_shape[2] // rows))
    first_row = block * rows
    last_row = min(out_shape[2], first_row + rows)
    first_channel, last_channel = part * group, min(channels, (part + 1) * group)
    if shifts is not None:
        partials[:, piece, first_channel : whole_vectors(last_channel, lanes)] = 0.0
    for row in range(first_row, last_row):
        reached = row * stride_h
        known = reached if row == first_row else max(reached, reached - stride_h + window)
        for begin in range(first_channel, last_channel, at_once):
            end = min(last_channel, begin + at_once)
            for v in range(known, reached + window):
                h = v - top
                inside = 0 <= h < height
                place = (begin - first_channel) // lanes * window * row_size + v % window * row_size
                origin = image * x_strides[0] + begin * x_strides[1] + h * x_strides[2]
                for start_w in starts_w:
                    # Columns whose pixel start_w + column * stride_w lies in the image.
                    left = min(columns, max(0, -(start_w // stride_w))) if inside else columns
                    right = max(left, min(columns, (width - 1 - start_w) // stride_w + 1)) if inside else columns
                    at = origin + (start_w + left * stride_w) * x_strides[3]
                    fill_row(
                        x, None, relu, affine, None, x_floor, at, x_strides[1], stride_w * x_strides[3], begin, end,
                        left, right, columns, ring, place, window * row_size,
                    )  # fmt: skip
                    place += columns * lanes
            for c in range(begin, end, lanes):
                count = min(lanes, channels - c)
                start = zero if bias is None else load_first(bias, c, count, zero)
                row_products(
                    ring, (c - first_channel) // lanes * window * row_size, offsets, reached % window * taps, taps,
                    weights, c, weights.shape[1], length, line, 0,
                )  # fmt: skip
                at = image * out_strides[0] + c * out_strides[1] + row * out_strides[2]
                if out_strides[1] == 1:
                    near, target, squares = zero, 0, 0
                    if shifts is not None:
                        target, squares = piece * partials.shape[2] + c, partials[0].size
                        if row == first_row:
                            store(shifts, target, finite_or_zero(_finished(line, 0, start, residual, low, at, count)))
                        near = load(shifts, target)
                    _store_row(
                        line, length, count, start, residual, low, out, at, out_strides[3], near, partials, target,
                        squares,
                    )  # fmt: skip
                else:
                    _scatter_row(
                        line, length, count, start, residual, low, out, at, out_strides[1], out_strides[3]
                    )  # fmt: skip


@driver
def correlate_depthwise(
    x, affine, relu, x_floor, x_shape, x_strides, starts_w, stride_h, stride_w, top, columns, offsets, weights, bias,
    residual, floor, out, out_shape, out_strides, rows, at_once, group, shifts, partials, workspace, parallel,
):  # fmt: skip
    """out = max(sum over t of weights * rows + bias + residual, floor).

    A task has ``rows`` rows of an image and ``group`` channels, and takes ``at_once`` rows at a time.
    x: flat; affine, relu, x_floor: its prologue. A row of x is kept as one run of ``columns`` pixels for each of
    ``starts_w``, with its pixels start_w + column * stride_w. top: zeros above the image. offsets (kept rows, taps), in
    elements, by the place of a window's first row among the kept. bias, residual: flat, or None; residual lies as out.
    Sums of a dense channels-last output as in ``conv_blocks.correlate_blocks``, a piece for the rows of a task.
    workspace: (threads, a row of the output, the kept rows of ``group`` channels, and PIXELS behind both).
    """
    tasks = out_shape[0] * -(-out_shape[2] // rows) * -(-out_shape[1] // group)
    source = (x, affine, relu, x_floor, x_shape, x_strides, starts_w, stride_h, stride_w, top, columns)
    share = (offsets, weights, bias, residual, floor, out, out_shape, out_strides, rows, at_once, group)
    if parallel:
        for task in prange(tasks):
            _correlate_task(int64(task), *source, *share, shifts, partials, workspace[get_thread_id()])
    else:
        for task in range(tasks):
            _correlate_task(task, *source, *share, shifts, partials, workspace[0])
