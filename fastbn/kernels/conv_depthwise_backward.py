"""Both gradients of a depthwise convolution in one walk over the input; see ``kernels.conv_depthwise``.

dx[p] = sum over taps t of rows[places[p] + offsets[t]] * weights[t], dweight[t] = the same sum over p with x[p] in the
place of weights[t], where rows are those of dy: what dx reads serves the weights too, and dy and x are read once.
Which taps reach a pixel follows from its row and column modulo the stride, its phase.
"""

import numpy as np
from numba import get_thread_id, int64, prange, uint64

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._simd import OUTER_ROWS
from fastbn.kernels._simd_depthwise import PIXELS, tile_gradients
from fastbn.kernels._vector import (
    add_to,
    at_least,
    at_most,
    fma,
    lanes_of,
    load,
    load_first,
    load_part,
    prefetch_far,
    prefetch_to_write,
    splat,
    store,
    store_part,
    widen,
)
from fastbn.kernels.batch_norm_tiles import whole_vectors
from fastbn.kernels.batch_norm_vectors import passed
from fastbn.kernels.channels import SCALE, SHIFT
from fastbn.kernels.conv_depthwise import pixel_step
from fastbn.kernels.conv_rows import fill_rows

FLUSH = 512  # products summed in the dtype of x, before they are added to sums in float64

# Of a phase: its first tap and their number, its first place, its pixels in a run of one image, its rows in an image.
FIRST_TAP, TAPS, FIRST_PLACE, COUNT, ROWS = range(5)


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
def _phase_of_channels(
    ring, phase, images, begin, end, places, pixels, offsets, weights, residual, x, x_affine, x_relu, x_ceiling,
    x_floor, dx, first, last, at, stride, run_step, sums, piece, totals, tile, dy, partner, dy_next, dy_each, x_next,
    each,
):  # fmt: skip
    """The pixels of one phase in rows ``begin`` to ``end`` times the stride, for channels ``first`` to ``last``."""
    lanes, zero, low = lanes_of(ring), splat(ring, 0.0), splat(ring, x_floor)
    (kept, taps), breadth = offsets.shape, weights.shape[1]
    tap, place, total = phase[FIRST_TAP], phase[FIRST_PLACE], images * phase[COUNT]
    for left in range(0, total, OUTER_ROWS):
        length = min(OUTER_ROWS, total - left)
        size = OUTER_ROWS if length > PIXELS else PIXELS
        for c in range(first, last, lanes):
            count = min(lanes, last - c)
            near = scale = shift = zero
            if x_affine is not None:
                channels = x_affine.shape[1]
                near = load_first(x_affine, c, count, zero)
                scale = load_first(x_affine, SCALE * channels + c, count, zero)
                shift = load_first(x_affine, SHIFT * channels + c, count, zero)
            g_sum = p_sum = zero
            for run in range(begin, end):
                for j in range(dy_next, dy_next + dy_each, lanes):
                    prefetch_far(dy, j)
                    if partner is not None:
                        prefetch_far(partner, j)
                dy_next += dy_each
                for j in range(x_next, x_next + each, lanes):
                    prefetch_far(x, j)
                    prefetch_to_write(dx, j)
                x_next += each
                i, q = at + (run - begin) * run_step + (c - first) * stride, place + left
                if stride == 1:
                    for k in range(length):
                        value = load_part(x, i + pixels[uint64(q + k)], count, near)
                        store(tile, k * lanes, _through(value, near, scale, shift, low, x_ceiling))
                else:
                    _gather_tile(x, i, pixels, q, length, count, stride, tile)
                    for k in range(0, length * lanes, lanes):
                        store(tile, k, _through(load(tile, k), near, scale, shift, low, x_ceiling))
                for k in range(length, size):
                    store(tile, k * lanes, zero)
                tile_gradients(
                    ring, c - first, places, q, offsets, run % kept * taps + tap, phase[TAPS], weights,
                    tap * breadth + c, breadth, int64(length > PIXELS), tile, totals,
                    ((c - first) // lanes * taps + tap) * lanes,
                )  # fmt: skip
                if stride != 1:
                    _scatter_tile(tile, residual, dx, i, pixels, q, length, count, stride)
                else:
                    for k in range(length):
                        value, j = load(tile, k * lanes), i + pixels[uint64(q + k)]
                        if residual is not None:
                            value = value + load_part(residual, j, count, zero)
                        store_part(dx, j, value, count)
                        if sums is not None:
                            d = load_part(x, j, count, near) - near
                            g = passed(value, d, None, 0, x_relu, scale, shift)
                            g_sum, p_sum = g_sum + g, fma(g, d, p_sum)
            if sums is not None:
                add_to(sums, piece * sums.shape[2] + c, widen(g_sum))
                add_to(sums, sums[0].size + piece * sums.shape[2] + c, widen(p_sum))


@body
def _flush_totals(totals, taps, partials, split, first, last):
    lanes = lanes_of(totals)
    zero = splat(totals, 0.0)
    for c in range(first, last, lanes):
        for tap in range(taps):
            q = ((c - first) // lanes * taps + tap) * lanes
            add_to(partials, (split * taps + tap) * partials.shape[2] + c, widen(load(totals, q)))
            store(totals, q, zero)


@body
def _gradients_task(
    task, dy_shape, dy_strides, x_shape, x_strides, dy, partner, relu, affine, slopes, x, x_affine, x_relu, x_ceiling,
    x_floor, stride_h, top, lead, window, columns, places, pixels, phases, offsets, weights, residual, dx, images,
    rows, at_once, run_rows, group, pitch, ahead, runs_at_once, sums, partials, work,
):  # fmt: skip
    lanes = lanes_of(x)
    channels, height, width = x_shape[1], x_shape[2], x_shape[3]
    dy_step, x_step = pixel_step(dy_strides, dy_shape[2], dy_shape[3]), pixel_step(x_strides, height, width)
    kept, taps = offsets.shape
    tile, rest = work[: OUTER_ROWS * lanes], work[OUTER_ROWS * lanes :]
    totals, ring = rest[: group * taps], rest[group * taps :]
    split, part = divmod(task, -(-channels // group))
    first, last = part * group, min(channels, (part + 1) * group)
    filled_channels = whole_vectors(last, lanes)
    steps = -(-height // stride_h)
    row_blocks = -(-steps // rows)
    partials[split, :, first:filled_channels] = 0.0
    totals[:] = 0.0
    summed = 0
    last_run = min(-(-x_shape[0] // images) * row_blocks, (split + 1) * runs_at_once)
    for run in range(split * runs_at_once, last_run):
        block, row_block = divmod(run, row_blocks)
        first_image = block * images
        last_image = min(x_shape[0], first_image + images)
        first_row = row_block * rows
        last_row = min(steps, first_row + rows)
        filled = first_row
        if sums is not None:
            sums[:, run, first:filled_channels] = 0.0
        for begin in range(first_row, last_row, at_once):
            end = min(last_row, begin + at_once)
            origin = first_image * dy_strides[0] + first * dy_strides[1]
            fill_rows(
                dy, partner, relu, affine, slopes, -np.inf, last_image - first_image, origin, dy_strides[0],
                dy_strides[1], dy_step, dy_shape[2], dy_shape[3], first, last, top, lead, filled, end - 1 + window,
                ring, kept, columns, pitch,
            )  # fmt: skip
            filled = end - 1 + window
            at = first_image * x_strides[0] + first * x_strides[1] + begin * stride_h * width * x_step
            each = OUTER_ROWS * lanes if ahead else 0
            x_next = at + (end - begin) * stride_h * width * x_step
            dy_next = origin + (filled - top) * dy_shape[3] * dy_step
            for phase in phases:
                bottom = min(end, phase[ROWS]) if run_rows == 1 else begin + 1
                _phase_of_channels(
                    ring, phase, last_image - first_image, begin, bottom, places, pixels, offsets, weights, residual,
                    x, x_affine, x_relu, x_ceiling, x_floor, dx, first, last, at, x_strides[1],
                    stride_h * width * x_step, sums, run, totals, tile, dy, partner, dy_next, each // len(phases),
                    x_next, each,
                )  # fmt: skip
                done = (bottom - begin) * phase[COUNT] * x_step if ahead else 0
                x_next, dy_next = x_next + done, dy_next + done // len(phases)
            summed += (last_image - first_image) * (end - begin) * stride_h * width
            if summed >= FLUSH or (run + 1 == last_run and end == last_row):
                _flush_totals(totals, taps, partials, split, first, last)
                summed = 0


@driver
def gradients_depthwise(
    dy, dy_shape, dy_strides, partner, relu, affine, slopes, x, x_shape, x_strides, x_affine, x_relu, x_ceiling,
    x_floor, stride_h, top, lead, window, columns, places, pixels, phases, offsets, weights, residual, dx, images,
    rows, at_once, run_rows, group, pitch, ahead, runs_at_once, sums, partials, workspace, parallel,
):  # fmt: skip
    """dx like x, residual added; partials (splits, taps, C to a whole vector) float64, the gradient to the weights.

    A task has ``runs_at_once`` times the ``rows`` rows of each phase of ``images`` images, and ``group`` channels; it
    takes rows as ``correlate_depthwise`` does. dy, x: flat; partner, relu, affine, slopes: dy's prologue; x_affine,
    x_ceiling, x_floor: that of x, and x_relu its ReLU. top: zeros above dy, lead: before each row; window: rows of dy
    that a row of each phase meets. phases (phases, 5): of each, FIRST_TAP and so on; taps lie by phase, as weights do.
    places: among the kept rows of dy, and pixels: in x, of each phase in a run.
    sums: with it, those of dx through x's batch norm, a piece for each run; see ``conv_blocks.correlate_blocks``.
    workspace: (threads, a tile, and of ``group`` channels the sums of all taps and the kept rows).
    """
    tasks = partials.shape[0] * -(-x_shape[1] // group)
    gradient = (dy, partner, relu, affine, slopes, x, x_affine, x_relu, x_ceiling, x_floor)
    places_of = (stride_h, top, lead, window, columns, places, pixels, phases, offsets, weights, residual, dx)
    share = (images, rows, at_once, run_rows, group, pitch, ahead, runs_at_once, sums, partials)
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
