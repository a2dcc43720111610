"""Both gradients of a depthwise convolution in one walk over the input; see ``kernels.conv_depthwise``.

dx[p] = sum over taps t of plane[places[p] + offsets[t]] * weights[t], dweight[t] = the same sum over p with x[p] in the
place of weights[t], where the plane is dy's: what dx reads serves the weights too, and dy and x are read once.
Which taps reach a pixel follows from its row and column modulo the stride, its phase.
"""

import numpy as np
from numba import get_thread_id, int64, prange, uint64

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._simd_depthwise import PIXELS, in_tile, tile_gradients
from fastbn.kernels._vector import at_least, at_most, fma, lanes_of, splat, widen
from fastbn.kernels._vector_apart import load_by_table, put_by_table, sum_of_registers
from fastbn.kernels._vector_memory import (
    add_to,
    fence,
    load,
    load_like,
    load_part,
    prefetch_far,
    prefetch_to_write,
    store,
    store_part,
    stream,
)
from fastbn.kernels.batch_norm_tiles import whole_vectors
from fastbn.kernels.batch_norm_vectors import passed
from fastbn.kernels.channels import NEAR_MEAN, SCALE, SHIFT
from fastbn.kernels.conv_rows import ask_block, asked_for, clear, constants_of, fill_rows, pixel_step

# Of a phase: its first tap and their number, its first place, its columns, and its rows in an image.
FIRST_TAP, TAPS, FIRST_PLACE, COLUMNS, ROWS = range(5)


@inlined
def _through(value, near, scale, shift, low, ceiling):
    """A vector of x through its prologue; ceiling: None without one."""
    if ceiling is not None:
        value = at_most(at_least(fma(value - near, scale, shift), low), ceiling)
    return value


@body
def _gather_tile(x, i, pixels, q, length, count, stride, tile):
    lanes = lanes_of(tile)
    for k in range(length):
        at = i + pixels[q + k]
        for lane in range(count):
            tile[k * lanes + lane] = x[at + lane * stride]
        for lane in range(count, lanes):
            tile[k * lanes + lane] = 0


@body
def _scatter_tile(tile, residual, dx, i, pixels, q, length, count, stride):
    lanes = lanes_of(tile)
    for k in range(length):
        at = i + pixels[q + k]
        for lane in range(count):
            value = tile[k * lanes + lane]
            if residual is not None:
                value += residual[at + lane * stride]
            dx[at + lane * stride] = value


@body
def _gradients_of_phase(
    plane, phase, pixels, places, targets, offsets, weights, c, count, residual, x, x_affine, x_relu, x_ceiling,
    x_floor, dx, at, stride, asked, asked_step, streaming, sums, piece, tile, totals,
):  # fmt: skip
    """The first ``pixels`` pixels of one phase, for the ``count`` channels from c on of which ``plane`` has dy."""
    lanes, zero, low = lanes_of(plane), splat(plane, 0.0), splat(plane, x_floor)
    tap, place, breadth = phase[FIRST_TAP], phase[FIRST_PLACE], weights.shape[1]
    near, scale = constants_of(x_affine, NEAR_MEAN, c, count, zero), constants_of(x_affine, SCALE, c, count, zero)
    shift = constants_of(x_affine, SHIFT, c, count, zero)
    nears, scales, shifts, lows = in_tile(near), in_tile(scale), in_tile(shift), in_tile(low)
    g_sum = p_sum = zero
    for left in range(0, pixels, PIXELS):
        length, q = min(PIXELS, pixels - left), place + left
        whole = stride == 1 and length == PIXELS and count == lanes
        if whole:
            values = _through(load_by_table(x, at, targets, q, nears), nears, scales, shifts, lows, x_ceiling)
        else:
            if stride == 1:
                for k in range(length):
                    value = load_part(x, at + targets[uint64(q + k)], count, near)
                    store(tile, k * lanes, _through(value, near, scale, shift, low, x_ceiling))
            else:
                _gather_tile(x, at, targets, q, length, count, stride, tile)
                for k in range(0, length * lanes, lanes):
                    store(tile, k, _through(load(tile, k), near, scale, shift, low, x_ceiling))
            for k in range(length, PIXELS):
                store(tile, k * lanes, zero)
            values = load_like(tile, 0, nears)
        gradients = tile_gradients(
            plane, places, q, offsets, tap, phase[TAPS], weights, tap * breadth + c, breadth, values, totals,
            tap * lanes,
        )  # fmt: skip
        if whole:
            if residual is not None:
                gradients = gradients + load_by_table(residual, at, targets, q, gradients)
            put_by_table(dx, at, targets, q, gradients, streaming)
            for _ in range(PIXELS):
                prefetch_far(x, asked)
                if not streaming:
                    prefetch_to_write(dx, asked)
                asked += asked_step
            if sums is not None:
                far = load_by_table(x, at, targets, q, nears) - nears
                through = passed(gradients, far, None, 0, x_relu, scales, shifts)
                g_sum = g_sum + sum_of_registers(plane, through)
                p_sum = p_sum + sum_of_registers(plane, through * far)
        elif stride != 1:
            store(tile, 0, gradients)
            _scatter_tile(tile, residual, dx, at, targets, q, length, count, stride)
        else:
            store(tile, 0, gradients)
            for k in range(length):
                value, j = load(tile, k * lanes), at + targets[uint64(q + k)]
                if residual is not None:
                    value = value + load_part(residual, j, count, zero)
                if streaming:
                    stream(dx, j, value)
                else:
                    store_part(dx, j, value, count)
                if sums is not None:
                    d = load_part(x, j, count, near) - near
                    g = passed(value, d, None, 0, x_relu, scale, shift)
                    g_sum, p_sum = g_sum + g, fma(g, d, p_sum)
    if sums is not None:
        add_to(sums, piece * sums.shape[2] + c, widen(g_sum))
        add_to(sums, sums[0].size + piece * sums.shape[2] + c, widen(p_sum))


@body
def _flush_totals(totals, partials, split, c):
    lanes, taps = lanes_of(totals), partials.shape[1]
    for tap in range(taps):
        add_to(partials, (split * taps + tap) * partials.shape[2] + c, widen(load(totals, tap * lanes)))
        store(totals, tap * lanes, splat(totals, 0.0))


@body
def _gradients_task(
    task, dy_shape, dy_strides, x_shape, x_strides, dy, partner, relu, affine, slopes, x, x_affine, x_relu, x_ceiling,
    x_floor, stride_h, top, window, spots, size, places, targets, phases, offsets, weights, residual, dx, images,
    rows, at_once, group, ahead, runs_at_once, streaming, sums, partials, work,
):  # fmt: skip
    lanes = lanes_of(x)
    channels, height, width = x_shape[1], x_shape[2], x_shape[3]
    dy_step, x_step = pixel_step(dy_strides, dy_shape[2], dy_shape[3]), pixel_step(x_strides, height, width)
    tile, rest = work[: PIXELS * lanes], work[PIXELS * lanes :]
    totals, plane = rest[: offsets.size * lanes], rest[offsets.size * lanes :]
    split, part = divmod(task, -(-channels // group))
    first, last = part * group, min(channels, (part + 1) * group)
    filled_channels = whole_vectors(last, lanes)
    steps = -(-height // stride_h)
    row_blocks = -(-steps // rows)
    partials[split, :, first:filled_channels] = 0.0
    totals[:] = 0.0
    last_run = min(-(-x_shape[0] // images) * row_blocks, (split + 1) * runs_at_once)
    for run in range(split * runs_at_once, last_run):
        block, row_block = divmod(run, row_blocks)
        first_image = block * images
        count_images = min(x_shape[0], first_image + images) - first_image
        first_row = row_block * rows
        last_row = min(steps, first_row + rows)
        if sums is not None:
            sums[:, run, first:filled_channels] = 0.0
        for begin in range(first_row, last_row, at_once):
            end = min(last_row, begin + at_once)
            clear(plane, images * size)
            above = top - begin
            skipped = max(0, above)
            inside = max(0, min(dy_shape[2] + above, end - 1 - begin + window) - skipped) * dy_shape[3]
            dy_at = first_image * dy_strides[0] + (skipped - above) * dy_shape[3] * dy_step
            at = first_image * x_strides[0] + begin * stride_h * width * x_step
            dy_pixels, x_pixels = count_images * inside, count_images * (end - begin) * stride_h * width
            if ahead and run == split * runs_at_once and begin == first_row:
                ask_block(dy, dy_at, dy_pixels * dy_step)
                ask_block(partner, dy_at, dy_pixels * dy_step)
                ask_block(x, at, x_pixels * x_step)
            for c in range(first, last, lanes):
                count = min(lanes, last - c)
                asked, asked_step = asked_for(ahead, at, x_pixels, x_step, c, lanes)
                fill_rows(
                    dy, partner, relu, affine, slopes, -np.inf, count_images, dy_at + c * dy_strides[1], dy_strides[0],
                    dy_strides[1], dy_step, c, count, *asked_for(ahead, dy_at, dy_pixels, dy_step, c, lanes), spots,
                    skipped * dy_shape[3], inside, plane, size,
                )  # fmt: skip
                for phase in phases:
                    pixels = count_images * (min(end, phase[ROWS]) - begin) * phase[COLUMNS]
                    _gradients_of_phase(
                        plane, phase, pixels, places, targets, offsets, weights, c, count, residual, x, x_affine,
                        x_relu, x_ceiling, x_floor, dx, at + c * x_strides[1], x_strides[1], asked, asked_step,
                        streaming, sums, run, tile, totals,
                    )  # fmt: skip
                    asked += asked_step * pixels
                _flush_totals(totals, partials, split, c)
    if streaming:
        fence()


@driver
def gradients_depthwise(
    dy, dy_shape, dy_strides, partner, relu, affine, slopes, x, x_shape, x_strides, x_affine, x_relu, x_ceiling,
    x_floor, stride_h, top, window, spots, size, places, targets, phases, offsets, weights, residual, dx, images,
    rows, at_once, group, ahead, runs_at_once, streaming, sums, partials, workspace, parallel,
):  # fmt: skip
    """dx like x, residual added; partials (splits, taps, C to a whole vector) float64, the gradient to the weights.

    A task has ``runs_at_once`` times the ``rows`` rows of each phase of ``images`` images, and ``group`` channels; it
    takes rows as ``correlate_depthwise`` does. dy, x: flat; partner, relu, affine, slopes: dy's prologue; x_affine,
    x_ceiling, x_floor: that of x, and x_relu its ReLU. top: zeros above dy; window: rows of dy that a row of each phase
    meets; spots, size: of the plane. phases (phases, 5): of each, FIRST_TAP and so on; taps lie by phase, as weights
    do. places: in the plane, and targets: in x, of each phase's pixels.
    streaming: as in ``correlate_depthwise``, of dx.
    sums: with it, those of dx through x's batch norm, a piece for each run; see ``conv_blocks.correlate_blocks``.
    workspace: (threads, a tile, the sums of all taps and the planes of ``images`` images).
    """
    tasks = partials.shape[0] * -(-x_shape[1] // group)
    gradient = (dy, partner, relu, affine, slopes, x, x_affine, x_relu, x_ceiling, x_floor)
    places_of = (stride_h, top, window, spots, size, places, targets, phases, offsets, weights, residual, dx)
    share = (images, rows, at_once, group, ahead, runs_at_once, streaming, sums, partials)
    if parallel:
        for task in prange(tasks):
            _gradients_task(
                int64(task), dy_shape, dy_strides, x_shape, x_strides, *gradient, *places_of, *share,
                workspace[get_thread_id()],
            )  # fmt: skip
    else:
        for task in range(tasks):
            _gradients_task(
                task, dy_shape, dy_strides, x_shape, x_strides, *gradient, *places_of, *share, workspace[0]
            )  # fmt: skip
