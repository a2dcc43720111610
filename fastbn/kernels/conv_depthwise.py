"""Depthwise convolution: every channel by itself, a vector of them at a time, down the rows of ``conv_rows``.

weights (taps, C to a whole vector); y[q, c] = sum over taps t of rows[places[q] + offsets[t] + c] * weights[t, c].
"""

from numba import get_thread_id, int64, prange

from fastbn.kernels._jit import body, driver, inlined
from fastbn.kernels._simd import OUTER_ROWS
from fastbn.kernels._simd_depthwise import PIXELS, tile_products
from fastbn.kernels._vector import (
    add_to,
    bounds_of,
    finite_or_zero,
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
    within,
)
from fastbn.kernels.batch_norm_tiles import whole_vectors
from fastbn.kernels.conv_rows import fill_rows


@inlined
def pixel_step(strides, height, width):
    """From pixel to pixel of an image, and of all images where channels lie side by side."""
    return strides[0] // (height * width) if strides[1] == 1 else strides[3]


@inlined
def _finished(tile, q, start, residual, bounds, at, count):
    value = load(tile, q) + start
    if residual is not None:
        value = value + load_part(residual, at, count, value)
    return within(value, bounds)


@body
def _scatter_tile(tile, pixels, start, residual, bounds, out, i, count, stride, step):
    lanes = lanes_of(tile)
    for pixel in range(pixels):
        q = pixel * lanes
        store(tile, q, load(tile, q) + start)
        if residual is not None:
            for lane in range(count):
                tile[q + lane] += residual[i + lane * stride]
        store(tile, q, within(load(tile, q), bounds))
        for lane in range(count):
            out[i + lane * stride] = tile[q + lane]
        i += step


@body
def _rows_of_channels(
    ring, places, pixels, offsets, slot, slot_step, runs, weights, bias, residual, limits, out, first, last, at, stride,
    step, run_step, shifts, partials, piece, starts, tile, x, x_next, x_each, next_at, each,
):  # fmt: skip
    """The output's pixels of ``runs`` runs, for channels ``first`` to ``last``, from what the ring has of them."""
    lanes, zero, bounds = lanes_of(ring), splat(ring, 0.0), bounds_of(ring, limits)
    kept, taps = offsets.shape
    for left in range(0, pixels, OUTER_ROWS):
        length = min(OUTER_ROWS, pixels - left)
        for c in range(first, last, lanes):
            count = min(lanes, last - c)
            start = zero if bias is None else load_first(bias, c, count, zero)
            place = 0 if shifts is None else piece * partials.shape[2] + c
            squares = 0 if shifts is None else partials[0].size
            d_sum = q_sum = zero
            for run in range(runs):
                for q in range(x_next, x_next + x_each, lanes):
                    prefetch_far(x, q)
                x_next += x_each
                for q in range(next_at, next_at + each, lanes):
                    prefetch_to_write(out, q)
                next_at += each
                tile_products(
                    ring, c - first, places, left, offsets, (slot + run * slot_step) % kept * taps, taps, weights, c,
                    weights.shape[1], int64(length > PIXELS), tile,
                )  # fmt: skip
                i = at + run * run_step + left * step + (c - first) * stride
                if stride != 1:
                    _scatter_tile(tile, length, start, residual, bounds, out, i, count, stride, step)
                elif shifts is None:
                    for q in range(0, length * lanes, lanes):
                        store_part(out, i, _finished(tile, q, start, residual, bounds, i, count), count)
                        i += step
                else:
                    if starts and left == 0 and run == 0:
                        store(shifts, place, finite_or_zero(_finished(tile, 0, start, residual, bounds, i, count)))
                    near = load(shifts, place)
                    for q in range(0, length * lanes, lanes):
                        value = _finished(tile, q, start, residual, bounds, i, count)
                        store_part(out, i, value, count)
                        d = value - near
                        d_sum, q_sum = d_sum + d, fma(d, d, q_sum)
                        i += step
            if shifts is not None:
                add_to(partials, place, widen(d_sum))
                add_to(partials, place + squares, widen(q_sum))


@body
def _correlate_task(
    task, x_shape, x_strides, out_shape, out_strides, x, affine, relu, x_floor, stride_h, top, lead, window, columns,
    places, offsets, weights, bias, residual, limits, out, images, rows, at_once, run_rows, group, pitch, ahead, shifts,
    partials, work,
):  # fmt: skip
    lanes = lanes_of(x)
    channels, height, width = x_shape[1], x_shape[2], x_shape[3]
    x_step = pixel_step(x_strides, height, width)
    out_step = pixel_step(out_strides, out_shape[2], out_shape[3])
    kept = offsets.shape[0]
    tile, ring = work[: OUTER_ROWS * lanes], work[OUTER_ROWS * lanes :]
    piece, part = divmod(task, -(-channels // group))
    block, row_block = divmod(piece, -(-out_shape[2] // rows))
    first, last = part * group, min(channels, (part + 1) * group)
    first_image = block * images
    last_image = min(x_shape[0], first_image + images)
    first_row = row_block * rows
    last_row = min(out_shape[2], first_row + rows)
    filled = first_row * stride_h
    if shifts is not None:
        partials[:, piece, first : whole_vectors(last, lanes)] = 0.0
    for begin in range(first_row, last_row, at_once):
        end = min(last_row, begin + at_once)
        needed = (end - 1) * stride_h + window
        origin = first_image * x_strides[0] + first * x_strides[1]
        fill_rows(
            x, None, relu, affine, None, x_floor, last_image - first_image, origin, x_strides[0], x_strides[1], x_step,
            height, width, first, last, top, lead, max(filled, begin * stride_h), needed, ring, kept, columns, pitch,
        )  # fmt: skip
        filled = needed
        x_next = origin + (needed - top) * width * x_step
        each = OUTER_ROWS * lanes if ahead else 0
        at = first_image * out_strides[0] + first * out_strides[1] + begin * out_shape[3] * out_step
        _rows_of_channels(
            ring, places, (last_image - first_image) * run_rows * out_shape[3], offsets, begin * stride_h, stride_h,
            (end - begin) // run_rows, weights, bias, residual, limits, out, first, last, at, out_strides[1], out_step,
            out_shape[3] * out_step, shifts, partials, piece, begin == first_row, tile,
            x, x_next, stride_h * (width // out_shape[3]) * each, at + (end - begin) * out_shape[3] * out_step, each,
        )  # fmt: skip


@driver
def correlate_depthwise(
    x, x_shape, x_strides, affine, relu, x_floor, stride_h, top, lead, window, columns, places, offsets, weights, bias,
    residual, limits, out, out_shape, out_strides, images, rows, at_once, run_rows, group, pitch, ahead, shifts,
    partials, workspace, parallel,
):  # fmt: skip
    """out = the sum over t of weights * rows, + bias + residual, within ``limits``.

    A task has ``rows`` rows of ``images`` images and ``group`` channels, and takes ``at_once`` rows at a time, in runs
    of ``run_rows``: one row of one image, or all rows of all its images. x: flat; affine, relu, x_floor: its prologue.
    ahead: whether to have the next rows brought into cache meanwhile.
    top, lead: zeros above and left of an image, kept with it ``columns`` pixels a row, ``pitch`` apart; window: rows
    of x that a row of the output meets. places: of a run's pixels, and offsets (kept rows, taps) by the place of a
    window's first row among the kept: in elements.
    bias, residual: flat, or None; residual lies as out.
    Sums of a dense channels-last output as in ``conv_blocks.correlate_blocks``, a piece for each task's rows.
    workspace: (threads, a tile and the kept rows of ``group`` channels).
    """
    tasks = -(-out_shape[0] // images) * -(-out_shape[2] // rows) * -(-out_shape[1] // group)
    source = (x, affine, relu, x_floor, stride_h, top, lead, window, columns, places, offsets, weights)
    share = (bias, residual)
    target = (out, images, rows, at_once, run_rows, group, pitch, ahead, shifts, partials)
    if parallel:
        for task in prange(tasks):
            work = workspace[get_thread_id()]
            _correlate_task(
                int64(task), x_shape, x_strides, out_shape, out_strides, *source, *share, limits, *target, work
            )
    else:
        for task in range(tasks):
            work = workspace[0]
            _correlate_task(task, x_shape, x_strides, out_shape, out_strides, *source, *share, limits, *target, work)
