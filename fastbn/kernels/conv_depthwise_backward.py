"""Both gradients of a depthwise convolution in one walk over the input; see ``kernels.conv_depthwise``.

dx[p] = sum over taps t of rows[offsets[t] + p] * weights[t], dweight[t] = sum over p of rows[offsets[t] + p] * x[p],
where rows are those of dy: what dx reads serves the weights too, and dy and x are read once. Which taps reach a pixel
follows from its row and column modulo the stride, its phase.
"""

import numpy as np
from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver
from fastbn.kernels._simd_depthwise import PIXELS, row_gradients
from fastbn.kernels._vector import (
    add_to,
    at_most,
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
from fastbn.kernels.batch_norm_vectors import normalized, passed
from fastbn.kernels.channels import SCALE, SHIFT
from fastbn.kernels.conv_depthwise import RUN
from fastbn.kernels.conv_rows import fill_row

FLUSH = 512  # products summed in the dtype of x, before they are added to sums in float64


@body
def _rows_of_channels(
    begin, end, kept_rows, ring, height, width, stride_h, stride_w, offsets, phases, weights, residual, x_rows,
    x_kept, x_affine, x_relu, x_ceiling, x_floor, dx, channels, first, last, at, strides, sums, run, flush, totals,
    partials, split, lines,
):  # fmt: skip
    """Rows of dx from ``begin`` to ``end`` times the stride, for channels ``first`` to ``last``."""
    lanes, zero, low = lanes_of(ring), splat(ring, 0.0), splat(ring, x_floor)
    taps, breadth, across = offsets.shape[1], weights.shape[1], min(stride_w, width)
    room = (-(-width // stride_w) + PIXELS) * lanes
    for c in range(first, last, lanes):
        count, vector = min(lanes, last - c), (c - first) // lanes
        near = scale = shift = zero
        if x_affine is not None:
            near, scale = load_first(x_affine, c, count, zero), load_first(x_affine, SCALE * channels + c, count, zero)
            shift = load_first(x_affine, SHIFT * channels + c, count, zero)
        place = 0 if sums is None else run * sums.shape[2] + c
        products = 0 if sums is None else sums[0].size
        source = vector * x_kept
        for row in range(begin, end):
            slot = row % offsets.shape[0]
            for h in range(row * stride_h, min(height, (row + 1) * stride_h)):
                for j in range(across):
                    phase, length = (h - row * stride_h) * across + j, -(-(width - j) // stride_w)
                    tap = phases[phase]
                    if x_affine is None:
                        row_gradients(
                            ring, vector * kept_rows, offsets, slot * taps + tap, phases[phase + 1] - tap, weights,
                            tap * breadth + c, breadth, length, x_rows, source, lines, totals,
                            (vector * taps + tap) * lanes,
                        )  # fmt: skip
                    else:
                        for q in range(0, length * lanes, lanes):
                            value = normalized(x_rows, None, None, source + q, 0, near, scale, shift, low)
                            store(lines, room + q, at_most(value, x_ceiling))
                        for q in range(length * lanes, (length + PIXELS) * lanes, lanes):
                            store(lines, room + q, zero)
                        row_gradients(
                            ring, vector * kept_rows, offsets, slot * taps + tap, phases[phase + 1] - tap, weights,
                            tap * breadth + c, breadth, length, lines, room, lines, totals,
                            (vector * taps + tap) * lanes,
                        )  # fmt: skip
                    i, step = at + (c - first) * strides[1] + h * strides[2] + j * strides[3], stride_w * strides[3]
                    if strides[1] != 1:
                        for column in range(length):
                            for lane in range(count):
                                value = lines[column * lanes + lane]
                                if residual is not None:
                                    value += residual[i + lane * strides[1]]
                                dx[i + lane * strides[1]] = value
                            i += step
                    elif sums is None:
                        for q in range(0, length * lanes, lanes):
                            value = load(lines, q)
                            if residual is not None:
                                value = value + load_part(residual, i, count, zero)
                            store_part(dx, i, value, count)
                            i += step
                    else:
                        for left in range(0, length, RUN):
                            g_sum = p_sum = zero
                            for column in range(left, min(length, left + RUN)):
                                value = load(lines, column * lanes)
                                if residual is not None:
                                    value = value + load_part(residual, i, count, zero)
                                store_part(dx, i, value, count)
                                d = load(x_rows, source + column * lanes) - near
                                g = passed(value, d, None, 0, x_relu, scale, shift)
                                g_sum, p_sum = g_sum + g, fma(g, d, p_sum)
                                i += step
                            add_to(sums, place, widen(g_sum))
                            add_to(sums, place + products, widen(p_sum))
                    source += room
        if flush:
            for tap in range(taps):
                q = (vector * taps + tap) * lanes
                add_to(partials, (split * taps + tap) * breadth + c, widen(load(totals, q)))
                store(totals, q, zero)


@body
def _gradients_task(
    task, dy_shape, dy_strides, x_shape, x_strides, dy, partner, relu, affine, slopes, x, x_affine, x_relu, x_ceiling,
    x_floor, stride_h, stride_w, top, lead, window, columns, offsets, phases, weights, residual, dx, rows, at_once,
    group, runs_at_once, sums, partials, work,
):  # fmt: skip
    lanes = lanes_of(x)
    channels, height, width = x_shape[1], x_shape[2], x_shape[3]
    taps, row_size = offsets.shape[1], columns * lanes
    kept_rows, vectors = offsets.shape[0] * row_size, group // lanes
    room = (-(-width // stride_w) + PIXELS) * lanes
    x_kept = at_once * stride_h * min(stride_w, width) * room
    lines, rest = work[: 2 * room], work[2 * room :]
    totals, rest = rest[: vectors * taps * lanes], rest[vectors * taps * lanes :]
    x_rows, ring = rest[: vectors * x_kept], rest[vectors * x_kept :]
    split, part = divmod(task, -(-channels // group))
    first, last = part * group, min(channels, (part + 1) * group)
    filled_channels = whole_vectors(last, lanes)
    steps = -(-height // stride_h)
    row_blocks = -(-steps // rows)
    partials[split, :, first:filled_channels] = 0.0
    totals[:] = 0.0
    summed = 0
    last_run = min(x_shape[0] * row_blocks, (split + 1) * runs_at_once)
    for run in range(split * runs_at_once, last_run):
        image, block = divmod(run, row_blocks)
        first_row = block * rows
        last_row = min(steps, first_row + rows)
        filled = first_row
        if sums is not None:
            sums[:, run, first:filled_channels] = 0.0
        for begin in range(first_row, last_row, at_once):
            end = min(last_row, begin + at_once)
            for v in range(filled, end - 1 + window):
                h = v - top
                inside = 0 <= h < dy_shape[2]
                at = image * dy_strides[0] + first * dy_strides[1] + h * dy_strides[2]
                left = lead if inside else columns
                right = min(columns, lead + dy_shape[3]) if inside else columns
                fill_row(
                    dy, partner, relu, affine, slopes, -np.inf, at, dy_strides[1], dy_strides[3], first, last, left,
                    right, columns, ring, v % offsets.shape[0] * row_size, kept_rows,
                )  # fmt: skip
            filled = end - 1 + window
            place = 0
            at = image * x_strides[0] + first * x_strides[1]
            for h in range(begin * stride_h, min(height, end * stride_h)):
                for j in range(min(stride_w, width)):
                    length = -(-(width - j) // stride_w)
                    fill_row(
                        x, None, None, None, None, -np.inf, at + h * x_strides[2] + j * x_strides[3], x_strides[1],
                        stride_w * x_strides[3], first, last, 0, length, length + PIXELS, x_rows, place, x_kept,
                    )  # fmt: skip
                    place += room
            summed += (end - begin) * stride_h * width
            flush = summed >= FLUSH or (run + 1 == last_run and end == last_row)
            if flush:
                summed = 0
            _rows_of_channels(
                begin, end, kept_rows, ring, height, width, stride_h, stride_w, offsets, phases, weights,
                residual, x_rows, x_kept, x_affine, x_relu, x_ceiling, x_floor, dx, channels, first, last, at,
                x_strides, sums, run, flush, totals, partials, split, lines,
            )  # fmt: skip


@driver
def gradients_depthwise(
    dy, dy_shape, dy_strides, partner, relu, affine, slopes, x, x_shape, x_strides, x_affine, x_relu, x_ceiling,
    x_floor, stride_h, stride_w, top, lead, window, columns, offsets, phases, weights, residual, dx, rows, at_once,
    group, runs_at_once, sums, partials, workspace, parallel,
):  # fmt: skip
    """dx like x, residual added; partials (splits, taps, C to a whole vector) float64, the gradient to the weights.

    A run has the ``rows`` rows of each phase of an image, a task ``runs_at_once`` runs and ``group`` channels.
    dy, x: flat; partner, relu, affine, slopes: dy's prologue; x_affine, x_ceiling, x_floor: that of x, and x_relu its
    ReLU. top: zeros above dy, lead: before each row; window: rows of dy that a row of each phase meets; columns: of a
    kept row. offsets (kept rows, taps): as in ``conv_depthwise``; taps lie by phase, from ``phases`` on, as weights do.
    sums: with it, those of dx through x's batch norm, a piece for each run; see ``conv_blocks.correlate_blocks``.
    workspace: (threads, two rows, and for each vector of ``group``: a sum for every tap, the rows of x, those of dy).
    """
    tasks = partials.shape[0] * -(-x_shape[1] // group)
    gradient = (dy, partner, relu, affine, slopes, x, x_affine, x_relu, x_ceiling, x_floor)
    places = (stride_h, stride_w, top, lead, window, columns, offsets, phases, weights, residual, dx)
    share = (rows, at_once, group, runs_at_once, sums, partials)
    if parallel:
        for task in prange(tasks):
            _gradients_task(
                int64(task), dy_shape, dy_strides, x_shape, x_strides, *gradient, *places, *share,
                workspace[get_thread_id()],
            )  # fmt: skip
    else:
        for task in range(tasks):
            _gradients_task(
                task, dy_shape, dy_strides, x_shape, x_strides, *gradient, *places, *share, workspace[0]
            )  # fmt: skip
