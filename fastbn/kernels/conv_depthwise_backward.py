"""Both gradients of a depthwise convolution in one walk over the input; see ``kernels.conv_depthwise``.

dx[p] = sum over taps t of rows[offsets[t] + p] * weights[t], dweight[t] = sum over p of rows[offsets[t] + p] * x[p],
where rows are those of dy: what dx reads serves the weights too, and dy and x are read once. Which taps reach a pixel
follows from its row and column modulo the stride, its phase.
"""

import numpy as np
from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._simd_depthwise import PIXELS, row_gradients
from fastbn.kernels._vector import add_to, fma, lanes_of, load, load_part, splat, store, store_part, widen
from fastbn.kernels.batch_norm_tiles import whole_vectors
from fastbn.kernels.batch_norm_vectors import passed
from fastbn.kernels.conv_depthwise import RUN
from fastbn.kernels.conv_rows import affine_of, fill_row


@inlined
def _store_row(lines, first, length, count, residual, dx, x, relu, line, at, step, sums, place, products):
    """A row of dx whose channels lie together; with ``sums``, those of it and of its products with x - near."""
    lanes = lanes_of(dx)
    near, scale, shift = line
    for begin in range(0, length, RUN):
        g_sum = p_sum = near - near
        for i in range(begin, min(length, begin + RUN)):
            pixel = at + i * step
            value = load(lines, first + i * lanes)
            if residual is not None:
                value = value + load_part(residual, pixel, count, value)
            store_part(dx, pixel, value, count)
            if sums is not None:
                d = load_part(x, pixel, count, near) - near
                g = passed(value, d, None, 0, relu, scale, shift)
                g_sum, p_sum = g_sum + g, fma(g, d, p_sum)
        if sums is not None:
            add_to(sums, place, widen(g_sum))
            add_to(sums, place + products, widen(p_sum))


@inlined
def _scatter_row(lines, first, length, count, residual, dx, at, stride, step):
    """A row of dx whose channels lie ``stride`` apart."""
    lanes = lanes_of(dx)
    for i in range(length):
        for lane in range(count):
            place = at + i * step + lane * stride
            value = lines[first + i * lanes + lane]
            if residual is not None:
                value += residual[place]
            dx[place] = value


@inlined
def _flush(totals, place, taps, partials, target):
    """Move the sums of a vector of channels to float64."""
    lanes = lanes_of(totals)
    for tap in range(taps):
        at = place + tap * lanes
        add_to(partials, target + tap * partials.shape[2], widen(load(totals, at)))
        store(totals, at, splat(totals, 0.0))


@body
def _gradients_task(
    task, dy, partner, relu, affine, slopes, dy_shape, dy_strides, x, x_affine, x_relu, x_ceiling, x_floor, x_shape,
    x_strides, stride_h, stride_w, top, lead, columns, offsets, phases, weights, residual, dx, rows, at_once, group,
    runs_at_once, sums, partials, work,
):  # fmt: skip
    lanes = lanes_of(x)
    zero = splat(x, 0.0)
    channels, height, width = x_shape[1], x_shape[2], x_shape[3]
    window, taps = offsets.shape
    row_size, weights_width = columns * lanes, weights.shape[1]
    room, kept_vectors = (-(-width // stride_w) + PIXELS) * lanes, group // lanes
    line_room = (1 + at_once // lanes) * room
    lines, rest = work[:line_room], work[line_room:]
    totals, ring = rest[: kept_vectors * taps * lanes], rest[kept_vectors * taps * lanes :]
    split, part = divmod(task, -(-channels // group))
    first_channel, last_channel = part * group, min(channels, (part + 1) * group)
    filled = whole_vectors(last_channel, lanes)
    steps = -(-height // stride_h)
    row_blocks = -(-steps // rows)
    partials[split, :, first_channel:filled] = 0.0
    totals[:] = 0.0
    summed = 0
    last_run = min(x_shape[0] * row_blocks, (split + 1) * runs_at_once)
    for run in range(split * runs_at_once, last_run):
        image, block = divmod(run, row_blocks)
        first_row = block * rows
        last_row = min(steps, first_row + rows)
        if sums is not None:
            sums[:, run, first_channel:filled] = 0.0
        for row in range(first_row, last_row):
            summed += stride_h * width
            flush = summed >= 512 or (run + 1 == last_run and row + 1 == last_row)
            if flush:
                summed = 0
            for begin in range(first_channel, last_channel, at_once):
                end = min(last_channel, begin + at_once)
                kept = (begin - first_channel) * window * columns
                known = row if row == first_row else row - 1 + window
                for v in range(known, row + window):
                    h = v - top
                    inside = 0 <= h < dy_shape[2]
                    at = image * dy_strides[0] + begin * dy_strides[1] + h * dy_strides[2]
                    left = lead if inside else columns
                    right = min(columns, lead + dy_shape[3]) if inside else columns
                    fill_row(
                        dy, partner, relu, affine, slopes, -np.inf, at, dy_strides[1], dy_strides[3], begin, end, left,
                        right, columns, ring, kept + v % window * row_size, window * row_size,
                    )  # fmt: skip
                for h in range(row * stride_h, min(height, (row + 1) * stride_h)):
                    for j in range(min(stride_w, width)):
                        phase = (h - row * stride_h) * stride_w + j
                        length = -(-(width - j) // stride_w)
                        origin = image * x_strides[0] + begin * x_strides[1] + h * x_strides[2] + j * x_strides[3]
                        step = stride_w * x_strides[3]
                        fill_row(
                            x, None, x_ceiling, x_affine, None, x_floor, origin, x_strides[1], step, begin, end, 0,
                            length, length + PIXELS, lines, room, room,
                        )  # fmt: skip
                        first = phases[phase]
                        for c in range(begin, end, lanes):
                            count, vector = min(lanes, channels - c), (c - first_channel) // lanes
                            x_constants = affine_of(x_affine, c, count, zero)
                            at = origin + (c - begin) * x_strides[1]
                            row_gradients(
                                ring, vector * window * row_size, offsets, row % window * taps + first,
                                phases[phase + 1] - first, weights, first * weights_width + c, weights_width, length,
                                lines, (1 + (c - begin) // lanes) * room, 0, totals, (vector * taps + first) * lanes,
                            )  # fmt: skip
                            if x_strides[1] == 1:
                                place = 0 if sums is None else run * sums.shape[2] + c
                                products = 0 if sums is None else sums[0].size
                                _store_row(
                                    lines, 0, length, count, residual, dx, x, x_relu, x_constants, at, step, sums,
                                    place, products,
                                )  # fmt: skip
                            else:
                                _scatter_row(lines, 0, length, count, residual, dx, at, x_strides[1], step)
                if flush:
                    for c in range(begin, end, lanes):
                        vector = (c - first_channel) // lanes
                        _flush(totals, vector * taps * lanes, taps, partials, split * taps * weights_width + c)


@driver
def gradients_depthwise(
    dy, partner, relu, affine, slopes, dy_shape, dy_strides, x, x_affine, x_relu, x_ceiling, x_floor, x_shape,
    x_strides, stride_h, stride_w, top, lead, columns, offsets, phases, weights, residual, dx, rows, at_once, group,
    runs_at_once, sums, partials, workspace, parallel,
):  # fmt: skip
    """dx like x, residual added, and partials (splits, taps, C to a whole vector) float64, the gradient to weights.
    """
    tasks = partials.shape[0] * -(-x_shape[1] // group)
    gradient = (dy, partner, relu, affine, slopes, dy_shape, dy_strides)
    source = (x, x_affine, x_relu, x_ceiling, x_floor, x_shape, x_strides)
    places = (stride_h, stride_w, top, lead, columns, offsets, phases, weights, residual, dx)
    share = (rows, at_once, group, runs_at_once, sums, partials)
    if parallel:
        for task in prange(tasks):
            _gradients_task(int64(task), *gradient, *source, *places, *share, workspace[get_thread_id()])
    else:
        for task in range(tasks):
            _gradients_task(task, *gradient, *source, *places, *share, workspace[0])
